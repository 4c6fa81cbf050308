"""Accuracy with dense and with Blossom attention on public logs, full and sampled ranking.

The options of a data set are the same for all models of a backbone but for the attention itself.
SASRec was published with as many key/value heads as query heads, BlossomRec with two; each is
measured with the other number as well, without its short-term path, and with a gate that shares one
weight among the paths, so that what comes of the heads, of selecting and of fusing is told apart.
The same attentions stand in BERT4Rec, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job_queue import FOREVER, run_jobs
from blossomrec.config import EvaluationConfig, ModelConfig, RunConfig, TrainingConfig, check
from blossomrec.errors import BlossomRecError, ConfigError

if TYPE_CHECKING:
    import torch

    from blossomrec.data.log import EventLog
    from blossomrec.training.loop import TrainingResult


@dataclass(frozen=True)
class Preset:
    """What a data set is trained with, and how many of each user's last events are held out.

    Attributes:
        validation_users: most cases in a validation.
    """

    max_len: int
    dropout: float
    tokens_per_batch: int
    epochs: int = 100
    last_events: int = 1
    validation_users: int = TrainingConfig.validation_users

    def configure(
        self,
        model: dict[str, Any],
        training: dict[str, Any],
        *,
        max_len: int | None = None,
        epochs: int | None = None,
    ) -> RunConfig:
        """The configuration of a model and its training on the data set.

        Args:
            model: options that are not the preset's, and a dropout, if other than that.
            training: likewise.
            max_len: longest history, in events, if other than the preset's.
            epochs: most epochs, if other than the preset's.

        Raises:
            ConfigError: a value is out of bounds.
        """
        max_len = self.max_len if max_len is None else max_len
        options = ModelConfig(max_len=max_len, **{"dropout": self.dropout, **model})
        times = BERT4REC_EPOCHS if options.backbone == "bert4rec" else 1
        config = RunConfig(
            options,
            TrainingConfig(
                # A history goes into one batch.
                tokens_per_batch=max(self.tokens_per_batch, max_len),
                epochs=times * self.epochs if epochs is None else epochs,
                validate_every=times,
                validation_users=self.validation_users,
                **training,
            ),
            EvaluationConfig(last_events=self.last_events),
        )
        check(config)
        return config


DATASETS = {
    "ml-1m": Preset(max_len=200, dropout=0.2, tokens_per_batch=8_192),
    "amazon-beauty": Preset(max_len=50, dropout=0.5, tokens_per_batch=4_096),
    "amazon-video-games": Preset(max_len=50, dropout=0.5, tokens_per_batch=4_096),
    "gowalla": Preset(max_len=50, dropout=0.2, tokens_per_batch=8_192),
    "ml-100k": Preset(max_len=200, dropout=0.5, tokens_per_batch=2_048),
    "online-retail-2": Preset(max_len=200, dropout=0.2, tokens_per_batch=8_192),
    "assist2017": Preset(max_len=200, dropout=0.2, tokens_per_batch=8_192),
    # Fifty users: one event of each would say little.
    "unix-commands": Preset(max_len=200, dropout=0.2, tokens_per_batch=8_192, last_events=100),
}
GATED = {"attention": "blossom", "fusion": "gated"}
UNION = {"attention": "blossom", "fusion": "union"}
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {"attention": "full", "kv_heads": 8},
    "SASRec-2kv": {"attention": "full", "kv_heads": 2},
    "BlossomRec": {**GATED, "kv_heads": 2},
    "BlossomRec-8kv": {**GATED, "kv_heads": 8},
    "BlossomRec-8kv-convex": {**GATED, "kv_heads": 8, "gate": "convex"},
    "BlossomRec-union": {**UNION, "kv_heads": 2},
    "BlossomRec-8kv-union": {**UNION, "kv_heads": 8},
    "BlossomRec-long": {"attention": "blossom", "kv_heads": 2, "paths": "long"},
    "BlossomRec-8kv-long": {"attention": "blossom", "kv_heads": 8, "paths": "long"},
    "BERT4Rec": {"backbone": "bert4rec", "attention": "full", "kv_heads": 8},
    "BERT4Rec-Blossom": {"backbone": "bert4rec", **GATED, "kv_heads": 2},
    "BERT4Rec-Blossom-8kv": {"backbone": "bert4rec", **GATED, "kv_heads": 8},
    "BERT4Rec-Blossom-8kv-union": {"backbone": "bert4rec", **UNION, "kv_heads": 8},
}
# BERT4Rec predicts the masked events of an epoch alone: more epochs, looked at as often.
BERT4REC_EPOCHS = round(1 / TrainingConfig().mask_probability)


@dataclass(frozen=True)
class Case:
    """One training: of which model on which data set.

    Attributes:
        max_len: longest history, in events; None is that of the preset.
        seed: of the training.
        epochs: most epochs; None are those of the preset.
    """

    dataset: str
    model: str
    max_len: int | None = None
    seed: int = 0
    epochs: int | None = None

    @property
    def name(self) -> str:
        length = "" if self.max_len is None else f" {self.max_len:,}"
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.dataset}{length} {self.model}{seed}"

    def configure(self) -> RunConfig:
        """The configuration; ConfigError names what is unknown or out of bounds."""
        known_or_refused(self.dataset, DATASETS)
        known_or_refused(self.model, MODELS)
        return DATASETS[self.dataset].configure(
            MODELS[self.model], {"seed": self.seed}, max_len=self.max_len, epochs=self.epochs
        )


def known_or_refused(name: str, known: Iterable[str]) -> None:
    """Raise ConfigError, with the names that are known, where this one is not among them."""
    if name not in known:
        raise ConfigError(f"{name!r} is not known: choose from {', '.join(known)}")


def measure_all(
    logs: Path,
    *,
    out: Path = Path("results/accuracy.jsonl"),
    runs: Path = Path("runs/accuracy"),
    datasets: list[str] | None = None,
    models: list[str] | None = None,
    max_lens: list[int] | None = None,
    seeds: list[int] | None = None,
    epochs: int | None = None,
    jobs: int = 1,
    seconds: float = FOREVER,
) -> None:
    """Measure the models side by side on prepared logs, into a results file.

    Args:
        logs: folder with a prepared log for each data set, such as ml-1m or amazon-beauty
        out: JSONL file that gets a line for each model, data set, length, seed and ranking
        runs: where the run folders go; training that was stopped goes on
        datasets: names of data sets, all that are known without it
        models: SASRec, BlossomRec, each with the other's key/value heads: SASRec-2kv,
            BlossomRec-8kv; the long-term path alone: BlossomRec-long, BlossomRec-8kv-long; a gate
            whose weights sum up to 1: BlossomRec-8kv-convex; one softmax over both paths:
            BlossomRec-union, BlossomRec-8kv-union; BERT4Rec, BERT4Rec-Blossom,
            BERT4Rec-Blossom-8kv, BERT4Rec-Blossom-8kv-union; all without it
        max_lens: longest histories to compare, in events; a data set's own without it
        seeds: of the training, each a training of its own; 0 without it
        epochs: most epochs, if other than a data set's own
        jobs: how many train at the same time, on the GPUs in turn
        seconds: until all has to end; what is not done goes on in the next call

    Raises:
        ConfigError: a data set, a model or a number is wrong; nothing is begun.
        BlossomRecError: some did not finish, after all others have; the message names them.
    """
    check_jobs(jobs)
    # Long ones first, so that none is left alone at the end.
    choices = itertools.product(
        datasets or DATASETS, max_lens or [None], list(models or MODELS)[::-1], seeds or [0]
    )
    cases = [Case(data, model, length, seed, epochs) for data, length, model, seed in choices]
    for case in cases:
        case.configure()
    in_processes(measure, cases, logs, runs, out=out, jobs=jobs, seconds=seconds)


@dataclass(frozen=True)
class CaseJob:
    """One training of several that share a machine; see ``run_jobs``.

    Attributes:
        case: what is trained; it has a name.
        measure: gives, of the case and the arguments, lines of results and a headline.
    """

    case: Any
    measure: Callable[..., tuple[list[dict[str, Any]], str]]
    arguments: tuple[Any, ...]
    needs: float = 0.0

    def __str__(self) -> str:
        return self.case.name

    def run(self, device: torch.device, seconds: float) -> list[dict[str, Any]]:
        """The lines; the headline is printed."""
        lines, headline = self.measure(self.case, *self.arguments)
        print(f"{self.case.name}: {headline}", flush=True)
        return lines


def in_processes(
    measure: Callable[..., tuple[list[dict[str, Any]], str]],
    cases: Sequence[Any],
    *arguments: Any,
    out: Path,
    jobs: int,
    seconds: float = FOREVER,
) -> None:
    """Call ``measure(case, *arguments, jobs)`` for each case in processes, and append the lines.

    Raises:
        BlossomRecError: some did not finish, after all others have; the message names them.
    """
    queue = [CaseJob(case, measure, (*arguments, jobs)) for case in cases]
    missing = run_jobs(queue, out, together=jobs, seconds=seconds)
    if missing:
        raise BlossomRecError(
            f"{len(missing)} of {len(cases)} did not finish: {'; '.join(missing)}"
        )


def check_jobs(jobs: int) -> None:
    """Raise ConfigError where there is nobody to work."""
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}: it must be at least 1")


def measure(case: Case, logs: Path, runs: Path, jobs: int = 1) -> tuple[list[dict[str, Any]], str]:
    """Train and evaluate one model on one data set: its lines, and its headline."""
    from benchmarks.results import result_line
    from blossomrec.data.log import EventLog
    from blossomrec.measure import evaluate_run

    config = case.configure()
    log = EventLog.open(logs / case.dataset)
    run = runs / f"{case.dataset}-{case.model}-{config.model.max_len}-{case.seed}"
    result, device = trained(config, log, run, jobs)
    headline, lines = [said(result)], []
    for ranking in ("full", "uni100"):
        evaluation = evaluate_run(run, log, ranking=ranking)
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
        lines.append(line)
        headline += shown(evaluation.metrics)
    return lines, ", ".join(headline)


def trained(
    config: RunConfig, log: EventLog, run: Path, jobs: int
) -> tuple[TrainingResult, torch.device]:
    """Train a model into a run folder, or go on there; what came of it, and where it ran."""
    import torch

    from blossomrec.data.split import make_split
    from blossomrec.models import build_model
    from blossomrec.training import train
    from blossomrec.training.state import seeded

    if jobs > 1:
        torch.set_num_threads(1)
    with seeded(config.training.seed):
        model = build_model(config.model, log.num_items)
    split = make_split(log, config.evaluation)
    result = train(model, log, split, config, run, progress=False)
    return result, next(model.parameters()).device


def costs(result: TrainingResult) -> dict[str, Any]:
    """What a training took, as fields of a line of results."""
    return {
        "seconds_per_epoch": round(result.seconds_per_epoch, 3),
        "epochs": result.epochs,
        "peak_mib": round(result.peak_mib, 1),
    }


def said(result: TrainingResult) -> str:
    """How long a training took, in words."""
    return f"{result.epochs} epochs, {result.seconds_per_epoch:.2f} s each"


def shown(metrics: dict[str, float]) -> list[str]:
    """The metrics that are shown first, in words."""
    names = [name for name in metrics if "ndcg@10" in name or "hr@10" in name]
    return [f"{name} {metrics[name]:.4f}" for name in names]
