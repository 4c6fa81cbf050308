"""Accuracy for equal time: the softmax over the whole catalogue, or over a sample of it.

Every form is trained from nothing for so many minutes, without validation on the way, and its last
weights rank all items. On Gowalla, and on a simulated log of a million items, which
:func:`prepare_simulated` makes where it is not there yet.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.accuracy_study import (
    DATASETS,
    MODELS,
    Preset,
    check_jobs,
    costs,
    in_processes,
    said,
    shown,
    trained,
)
from blossomrec.config import RunConfig, check
from blossomrec.errors import ConfigError

SIMULATED = "simulated"
PRESETS = {
    "gowalla": DATASETS["gowalla"],
    SIMULATED: Preset(max_len=200, dropout=0.1, tokens_per_batch=32_768),
}
USERS, ITEMS, EVENTS_PER_USER = 200_000, 1_000_000, 100
# More than any training gets to.
ENDLESS = 1_000_000


def _sampled(negatives: int, **options: Any) -> dict[str, Any]:
    lazy = {"uniform_share": 0.5, "table_optimizer": "lazy_adamw"}
    return {"loss": "sampled_softmax", "negatives": negatives, **lazy, **options}


FORMS: dict[str, dict[str, Any]] = {
    "exact": {"loss": "cross_entropy"},
    "sampled-256-by-events": {"loss": "sampled_softmax", "negatives": 256},
    "sampled-1024": _sampled(1_024),
    "sampled-4096": _sampled(4_096),
    "sampled-4096-by-events": _sampled(4_096, uniform_share=0.0),
    "sampled-4096-uniform": _sampled(4_096, uniform_share=1.0),
    "sampled-4096-adagrad": _sampled(
        4_096, table_optimizer="rowwise_adagrad", table_learning_rate=0.05
    ),
    "sampled-16384": _sampled(16_384),
}


@dataclass(frozen=True)
class Case:
    """One training: of which form, on which data set, for how long."""

    dataset: str
    form: str
    minutes: float
    seed: int = 0
    model: str = "BlossomRec"

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.model}-{self.form}-{self.minutes:g}min-{self.seed}"

    def configure(self) -> RunConfig:
        """The whole configuration.

        Raises:
            ConfigError: there is no such data set, form or model, or a value is out of bounds.
        """
        for kind, name, known in (
            ("data set", self.dataset, PRESETS),
            ("form", self.form, FORMS),
            ("model", self.model, MODELS),
        ):
            if name not in known:
                raise ConfigError(f"no {kind} {name!r}: choose from {', '.join(known)}")
        training = FORMS[self.form] | {"minutes": self.minutes, "seed": self.seed}
        # The tables must not be mixed: what is seen are ids.
        inputs = {"content": "off", "repeats": "off"}
        config = PRESETS[self.dataset].configure(
            MODELS[self.model] | inputs, training, epochs=ENDLESS
        )
        endless = dataclasses.replace(config.training, validate_every=ENDLESS)
        config = dataclasses.replace(config, training=endless)
        check(config)
        if not self.minutes:
            raise ConfigError("minutes is 0: a training of this study ends by time")
        return config


def measure_sampled(
    logs: Path,
    *,
    datasets: list[str] | None = None,
    forms: list[str] | None = None,
    minutes: list[float] | None = None,
    seeds: list[int] | None = None,
    model: str = "BlossomRec",
    users: int = USERS,
    items: int = ITEMS,
    out: Path = Path("results/sampled.jsonl"),
    runs: Path = Path("runs/sampled"),
    jobs: int = 1,
) -> None:
    """Train with exact and with sampled softmax for equal time, into a results file.

    Args:
        logs: folder with a prepared log for each data set; the simulated one is made there
        datasets: gowalla, simulated; both without it
        forms: exact, sampled-256-by-events, sampled-1024, sampled-4096, sampled-4096-by-events,
            sampled-4096-uniform, sampled-4096-adagrad, sampled-16384; all without it
        minutes: how long each is trained, one training for each; 2 and 10 without it
        seeds: of the training; 0 without it
        model: one of those of the accuracy study
        users: of the simulated log
        items: of the simulated log
        out: JSONL file that gets a line for each training
        runs: where the run folders go; training that was stopped goes on
        jobs: trainings at a time; more than one share the machine and its time

    Raises:
        ConfigError: a name is unknown, or there is nobody to work.
        BlossomRecError: some did not finish.
    """
    check_jobs(jobs)
    choices = itertools.product(
        datasets or PRESETS, forms or FORMS, minutes or [2.0, 10.0], seeds or [0]
    )
    cases = [Case(*choice, model=model) for choice in choices]
    for case in cases:
        case.configure()
    if any(case.dataset == SIMULATED for case in cases) and not (logs / SIMULATED).exists():
        prepare_simulated(logs / SIMULATED, users=users, items=items)
    in_processes(measure, cases, logs, runs, out=out, jobs=jobs)


def measure(case: Case, logs: Path, runs: Path, jobs: int = 1) -> tuple[list[dict[str, Any]], str]:
    """Train and evaluate once: its line, and its headline."""
    from benchmarks.results import result_line
    from blossomrec.data.log import EventLog
    from blossomrec.measure import evaluate_run

    config = case.configure()
    log = EventLog.open(logs / case.dataset)
    run = runs / case.name
    result, device = trained(config, log, run, jobs)
    evaluation = evaluate_run(run, log, ranking="full")
    line = result_line(
        evaluation,
        dataset=case.dataset,
        model=case.model,
        attention=config.model.attention,
        seed=case.seed,
        max_len=config.model.max_len,
        device=device,
        **costs(result),
    )
    told = {
        "form": case.form,
        "minutes": case.minutes,
        "items": log.num_items,
        "steps": result.steps,
        "negatives": config.training.negatives if case.form != "exact" else None,
        "table_optimizer": config.training.table_optimizer,
    }
    return [line | told], ", ".join([said(result), *shown(evaluation.metrics)])


def prepare_simulated(folder: Path, *, users: int = USERS, items: int = ITEMS) -> None:
    """Make the simulated log, in which items that nobody met are left out."""
    from blossomrec.data.log import EventLog
    from blossomrec.data.simulate import SimulationConfig, simulate

    size = SimulationConfig(
        users=users,
        items=items,
        events_per_user=EVENTS_PER_USER,
        # As many tastes as let one have a few hundred items.
        interests=max(16, min(512, items // 200)),
        noise=0.2,
    )
    EventLog.prepare(simulate(size), folder)
