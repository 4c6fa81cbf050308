"""One training of a table of the paper: what it is, what is known of it, and doing it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from benchmarks.accuracy import accuracy_study as study
from benchmarks.accuracy.paper_tables import AT_RANDOM, IDS_ALONE, PRESETS, Form
from blossomrec.config import RunConfig, to_dict

Line = dict[str, Any]
RANKINGS = ("full", "uni100")
# Backbones in which the option attention has no effect, and what they have in its place.
FIXED_ATTENTION = {"gru4rec": None, "mamba4rec": "mamba", "hstu": "hstu"}
# What decides nothing of what comes of a training: where and how it runs, its seed, and what only
# counts where a run is brought up to date.
NO_OPTIONS = ("device", "graph", "checkpoint_overhead", "attention_impl", "seed")
NO_OPTIONS += ("tracker", "track_model", "replay")


@dataclass(frozen=True)
class Training:
    """A form of model on a data set, once; baselines are fitted instead of trained.

    Attributes:
        max_len: longest history, in events.
        epochs: most epochs; None are those of the preset.
    """

    dataset: str
    form: Form
    max_len: int
    seed: int = 0
    epochs: int | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.max_len:,} {self.form.name} seed {self.seed}"

    def configure(self) -> RunConfig:
        """The configuration; ConfigError where a value is out of bounds."""
        if self.form.model.get("attention") == AT_RANDOM:
            from benchmarks.accuracy.random_selection import register

            register()
        return PRESETS[self.dataset].configure(
            {**IDS_ALONE, **self.form.model},
            {"seed": self.seed, **self.form.training},
            max_len=self.max_len,
            epochs=self.epochs,
        )

    @cached_property
    def options(self) -> dict[str, Any]:
        """All that decides what comes of it, besides data set, seed and code."""
        evaluation = {"last_events": PRESETS[self.dataset].last_events}
        if self.form.baseline:
            return {"baseline": self.form.baseline, **evaluation}
        config = to_dict(self.configure())
        options = {**config["model"], **config["training"], **evaluation}
        return {name: value for name, value in options.items() if name not in NO_OPTIONS}

    def is_of(self, line: Line) -> bool:
        """Whether a line is of this training; options that came later were at their defaults."""
        if (line.get("dataset"), line.get("seed")) != (self.dataset, self.seed):
            return False
        told = line.get("options")
        return bool(told) and _deciding(told) == _deciding(self.options)

    def run(self, runs: Path) -> Path:
        """The run folder, one for each set of options."""
        words = re.sub(r"[^\w]+", "-", self.form.name).strip("-")
        text = json.dumps(self.options, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return runs / f"{self.dataset}-{words}-{self.max_len}-{self.seed}-{digest}"

    @cached_property
    def fields(self) -> Line:
        """What a line says of the model."""
        model: Mapping[str, Any] = {} if self.form.baseline else to_dict(self.configure().model)
        backbone = model.get("backbone")
        attention = FIXED_ATTENTION.get(str(backbone), model.get("attention"))
        has_heads = attention not in (None, "mamba")
        return {
            "backbone": backbone,
            "attention": attention,
            "fusion": model["fusion"] if attention in ("blossom", AT_RANDOM) else None,
            "kv_heads": (model["kv_heads"] or model["heads"]) if has_heads else None,
            "repeats": model.get("repeats") == "on",
            "options": self.options,
        }


def _deciding(options: Line) -> Line:
    """Options with the defaults of those that are not told, without those that decide nothing."""
    told = _defaults() | options
    return {name: value for name, value in told.items() if name not in NO_OPTIONS}


@cache
def _defaults() -> dict[str, Any]:
    config = to_dict(RunConfig())
    return config["model"] | config["training"]


def measured(lines: Iterable[Line], training: Training) -> bool:
    """Whether there is a line of this training for every ranking."""
    # Sampled rankings are called by how many items were drawn.
    found = {line["ranking"][:3] for line in lines if "metrics" in line and training.is_of(line)}
    return {ranking[:3] for ranking in RANKINGS} <= found


def measure(training: Training, logs: Path, runs: Path, jobs: int = 1) -> tuple[list[Line], str]:
    """Train or fit, evaluate, keep the evaluations: the lines, and the headline."""
    from benchmarks.results import result_line
    from blossomrec.data.log import EventLog
    from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
    from blossomrec.measure import evaluate_baseline, evaluate_run

    log, run, device = EventLog.open(logs / training.dataset), training.run(runs), "cpu"
    took: Line = {}
    headline = ["fitted"]
    if not training.form.baseline:
        config = training.configure()
        result, device = study.trained(config, log, run, jobs)
        headline = [study.said(result)]
        took = study.costs(result) | {
            "best_epoch": result.best_epoch,
            "validation": {name: round(value, 6) for name, value in result.validation.items()},
        }
    lines = []
    for ranking in RANKINGS:
        if training.form.baseline:
            last_events = PRESETS[training.dataset].last_events
            evaluation = evaluate_baseline(
                training.form.baseline, log, ranking=ranking, last_events=last_events
            )
        else:
            evaluation = evaluate_run(run, log, ranking=ranking)
        save_evaluation(evaluation, evaluation_path(run, ranking=ranking))
        line = result_line(
            evaluation,
            dataset=training.dataset,
            model=training.form.name,
            attention=None,
            seed=training.seed,
            max_len=training.max_len,
            device=device,
        )
        lines.append(line | training.fields | took)
        headline += study.shown(evaluation.metrics)
    return lines, ", ".join(headline)
