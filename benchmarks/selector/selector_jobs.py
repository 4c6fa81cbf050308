"""Trainings that compare selectors, each a job that ends in lines of results."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import provenance
from benchmarks.selector.recall_measures import RecallMeasures, as_numbers, max_recall_layer
from benchmarks.selector.recall_options import RecallTraining
from benchmarks.selector.recall_training import train_recall
from benchmarks.selector.selector_candidates import CANDIDATES, PUBLISHED, build_candidate
from blossomrec.config import ModelConfig, RunConfig, TrainingConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.evaluation import Evaluation
from blossomrec.evaluation.evaluation import load_evaluation, save_evaluation
from blossomrec.evaluation.significance import bootstrap_intervals, compare
from blossomrec.measure import evaluate_run
from blossomrec.models import build_model
from blossomrec.report.inspect.inspection import Inspection, inspect_run
from blossomrec.training import train
from blossomrec.training.shape import waiting_attention
from blossomrec.training.state import seeded

MAX_LEN = 1_024
# Users of a log with this many events before the target are measured apart as well.
LONG_HISTORY = 200
# What remains of the time for measuring when the training on recall has to stop.
_MEASURING_SECONDS = 20
# Candidates whose accuracy on a log is compared, the first less the second.
PAIRS = (("mlp", "full"), ("mean", "full"), ("mean", "mlp"))


@dataclass(frozen=True)
class RecallJob:
    """A candidate trained and measured on associative recall.

    Attributes:
        candidate: one of ``CANDIDATES``.
        model: options of the model that differ.
        training: the task and how it is trained on.
        needs: seconds below which it is not worth beginning.
        task: name in the line; where it is not given, whether it is the control form.
        graph: whether a step is replayed as a CUDA graph where that is possible.
    """

    candidate: str
    model: dict[str, Any]
    training: RecallTraining
    needs: float = 0.0
    task: str = ""
    graph: bool = True

    def __str__(self) -> str:
        options = self.model | self._training_options()
        return f"{self.candidate} {options} {self.training.length} seed {self.training.seed}"

    def _training_options(self) -> dict[str, Any]:
        """What of the training is not as it is by default, but for what the line has anyway."""
        known = {"length", "seed", "seconds", "control"}
        return {
            each.name: getattr(self.training, each.name)
            for each in dataclasses.fields(self.training)
            if each.name not in known and getattr(self.training, each.name) != each.default
        }

    def run(self, device: torch.device, seconds: float) -> list[dict[str, Any]]:
        """The line; after ``seconds`` the training is stopped and measured as it is."""
        began = time.monotonic()
        training = self.training
        config = ModelConfig(max_len=training.length, norm="pre", dropout=0.0, **PUBLISHED)
        config = dataclasses.replace(config, **self.model)
        limit = min(training.seconds, max(0.0, seconds - _MEASURING_SECONDS))
        training = dataclasses.replace(training, seconds=limit)
        if not CANDIDATES[self.candidate].distilled:
            training = dataclasses.replace(training, selector_weight=0.0)

        def report(line: str) -> None:
            print(f"{self}: {line}", flush=True)

        graph = self.graph and CANDIDATES[self.candidate].graph
        graph &= not waiting_attention(config, exact=False)
        with seeded(training.seed, device):
            model = build_candidate(self.candidate, config, training.items).to(device)
            trained = train_recall(model, training, device=device, graph=graph, report=report)
        measures = trained.measures
        layer = max_recall_layer(measures)
        line = {
            "task": self.task or ("recall-control" if training.control else "recall"),
            "candidate": self.candidate,
            "seed": training.seed,
            "n": config.top_n,
            "block_size": config.block_size,
            "layers": config.layers,
            "options": self.model,
            "training": self._training_options(),
            "length": measures.length,
            "distance": training.distance,
            "recall_at_n": None if layer is None else round(measures.recall[layer], 4),
            **_shares(measures, layer),
            "metrics": as_numbers(measures),
            "steps": trained.steps,
            "finished": trained.finished,
            "gradient_norms": {
                str(length): {part: float(f"{norm:.3g}") for part, norm in norms.items()}
                for length, norms in trained.gradient_norms.items()
            },
            "course": [list(dataclasses.astuple(each)) for each in trained.course],
            "seconds": round(time.monotonic() - began, 1),
        }
        return [line | provenance(device)]


def _shares(measures: RecallMeasures, layer: int | None) -> dict[str, float | None]:
    """Attention that the selected blocks cover, and that the best ones would, mean over heads."""
    if layer is None or measures.selection is None:
        return {"mass_covered": None, "mass_best": None}
    found = measures.selection.layers[layer]
    return {
        name: round(sum(values) / len(values), 4)
        for name, values in (("mass_covered", found.mass_covered), ("mass_best", found.mass_best))
    }


@dataclass(frozen=True)
class LogJob:
    """SASRec with the attention of a candidate, trained and evaluated on a prepared log.

    Attributes:
        candidate: one of ``CANDIDATES`` that is a choice of options.
        dataset: folder of the log in ``logs``.
        logs, runs: where the logs are, and where the runs and their evaluations go.
        seed: of the training.
        model, training: options that differ.
        needs: seconds below which it is not begun; it is not stopped before its end.
    """

    candidate: str
    dataset: str
    logs: Path
    runs: Path
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    needs: float = 0.0

    def __str__(self) -> str:
        return f"{self.candidate} {self.model} {self.dataset} seed {self.seed}"

    def run(self, device: torch.device, seconds: float) -> list[dict[str, Any]]:
        """The line, and one for each pair of candidates whose other one was evaluated before."""
        began = time.monotonic()
        untrained = {} if CANDIDATES[self.candidate].distilled else {"selector_weight": 0.0}
        options = CANDIDATES[self.candidate].options | untrained | self.model
        config = RunConfig(
            ModelConfig(**{"max_len": MAX_LEN, **PUBLISHED, **options}),
            TrainingConfig(**{"tokens_per_batch": 8_192, **self.training, "seed": self.seed}),
        )
        log = EventLog.open(self.logs / self.dataset)
        run = self.runs / self._name(self.candidate)
        with seeded(self.seed):
            built = build_model(config.model, log.num_items)
        result = train(built, log, make_split(log, config.evaluation), config, run, progress=False)
        trained = time.monotonic() - began
        print(f"{self}: {result.epochs} epochs in {trained:.0f} s", flush=True)
        evaluation = evaluate_run(run, log)
        save_evaluation(evaluation, self._evaluation(self.candidate))
        metrics = accuracy(evaluation)
        found: dict[str, Any] = {"covered": None, "best": None}
        if config.model.attention == "blossom":
            whole = inspect_run(run, self.logs / self.dataset)
            found = coverage(whole)
            metrics |= {name: found[name] for name in ("random", "own", "short_term", "ratio")}
            metrics["choosing_events"] = whole.choice.choosing_events / whole.choice.events
            metrics["long_gate"] = [
                round(float(layer.gate_balance.mean()), 4) for layer in whole.layers
            ]
            if metrics["long_histories"]["users"]:
                long = inspect_run(run, self.logs / self.dataset, min_events=LONG_HISTORY)
                metrics["long_histories"] |= coverage(long)
        line = {
            "task": self.dataset,
            "candidate": self.candidate,
            "seed": self.seed,
            "n": config.model.top_n,
            "block_size": config.model.block_size,
            "layers": config.model.layers,
            "options": self.model,
            "length": MAX_LEN,
            "distance": None,
            "recall_at_n": None,
            "mass_covered": found["covered"],
            "mass_best": found["best"],
            "metrics": metrics,
            "epochs": result.epochs,
            "seconds": round(trained, 1),
        }
        return [line | provenance(device), *self._differences()]

    def _differences(self) -> list[dict[str, Any]]:
        """Of the two that finish a pair the later one compares; both, if they do at once."""
        return [
            {
                "task": self.dataset,
                "candidate": f"{first} - {second}",
                "seed": self.seed,
                "options": self.model,
                "length": MAX_LEN,
                "metrics": difference(
                    load_evaluation(self._evaluation(first)),
                    load_evaluation(self._evaluation(second)),
                ),
                **provenance(),
            }
            for first, second in PAIRS
            if self.candidate in (first, second)
            and self._evaluation(first).is_file()
            and self._evaluation(second).is_file()
        ]

    def _name(self, candidate: str) -> str:
        options = "".join(f"-{name}-{value}" for name, value in self.model.items())
        return f"{self.dataset}-{candidate}-{self.seed}{options}"

    def _evaluation(self, candidate: str) -> Path:
        return self.runs / f"{self._name(candidate)}.json"


def accuracy(evaluation: Evaluation) -> dict[str, Any]:
    """Metrics of all users and, as ``long_histories``, of those with long ones."""
    metrics: dict[str, Any] = {
        name: round(evaluation.metrics[name], 6) for name in ("hr@10", "ndcg@10", "mrr@10")
    }
    metrics["ndcg@10_interval"] = _rounded(evaluation.intervals["ndcg@10"])
    long = evaluation.per_user["ndcg@10"][evaluation.user_lengths >= LONG_HISTORY]
    metrics["long_histories"] = {"min_events": LONG_HISTORY, "users": len(long)}
    if len(long):
        interval = bootstrap_intervals({"ndcg@10": long})["ndcg@10"]
        metrics["long_histories"] |= {
            "ndcg@10": round(float(long.mean()), 6),
            "ndcg@10_interval": _rounded(interval),
        }
    return metrics


def coverage(found: Inspection) -> dict[str, Any]:
    """Shares of attention, mean over layers and heads, and the ratio with its interval."""
    heads = [head for layer in found.layers for head in layer.heads]
    shares = {
        name: round(sum(getattr(head, name) for head in heads) / len(heads), 4)
        for name in ("covered", "best", "random", "own", "short_term")
    }
    return shares | {"ratio": _rounded((found.ratio.value, found.ratio.low, found.ratio.high), 4)}


def difference(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Metrics of the first less those of the second on the same users, each with its interval."""
    tests = compare(first, second)
    metrics: dict[str, Any] = {
        name: _rounded((tests[name].difference, tests[name].low, tests[name].high))
        for name in ("ndcg@10", "hr@10")
    }
    metrics["p"] = tests["ndcg@10"].p_permutation
    less = first.per_user["ndcg@10"] - second.per_user["ndcg@10"]
    less = less[first.user_lengths >= LONG_HISTORY]
    long: dict[str, Any] = {"min_events": LONG_HISTORY, "users": len(less)}
    if len(less):
        interval = bootstrap_intervals({"ndcg@10": less})["ndcg@10"]
        long["ndcg@10"] = _rounded((float(less.mean()), *interval))
    return metrics | {"long_histories": long}


def _rounded(values: tuple[float, ...], digits: int = 6) -> list[float]:
    return [round(each, digits) for each in values]
