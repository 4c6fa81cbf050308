"""Accuracy with times, moments, content and kinds among the inputs, beside ids alone.

Items without a training event are measured by themselves, among all items and among their like.
With a wanted kind of event, only events of it are validation and test targets, and what is compared
is how much the kinds count in training and whether the model sees them. Of such logs two are made
here, by :func:`prepare_purchases` and :func:`prepare_quantities`.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from blossomrec.config import EvaluationConfig, ModelConfig, RunConfig, TrainingConfig, check
from blossomrec.data.features import Categories
from blossomrec.data.split import Cases, Split
from blossomrec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blossomrec.data.log import EventLog
    from blossomrec.evaluation.evaluation import Evaluation
    from blossomrec.models.sequence import SequenceModel

IDS: dict[str, Any] = dict.fromkeys(
    (
        *("time_gap", "request_time", "content"),
        *("event_kinds", "request_kind", "context", "user_table"),
        "repeats",
    ),
    "off",
)
KINDS = IDS | {"event_kinds": "on", "request_kind": "on"}
FORMS: dict[str, dict[str, Any]] = {
    "ids": IDS,
    "gap": IDS | {"time_gap": "on"},
    "rotary": IDS | {"time_share": 0.25},
    "gap-rotary": IDS | {"time_gap": "on", "time_share": 0.25},
    "gap-request": IDS | {"time_gap": "on", "request_time": "on"},
    "gap-request-clock": IDS | {"time_gap": "on", "request_time": "on", "clock": "on"},
    "content": IDS | {"content": "on"},
    "gap-request-content": IDS | {"time_gap": "on", "request_time": "on", "content": "on"},
    "kinds-seen": IDS | {"event_kinds": "on"},
    "kinds": KINDS,
    "context": IDS | {"context": "on"},
    "users": IDS | {"user_table": "on"},
    "repeats": IDS | {"repeats": "on"},
    "gap-request-repeats": IDS | {"time_gap": "on", "request_time": "on", "repeats": "on"},
}


class KindForm(NamedTuple):
    """What a model sees, whether its targets count by their kind, and what validates it."""

    inputs: dict[str, Any]
    weighted: bool = False
    validated_on_all: bool = False


# With a wanted kind. "any-kind" is what who knows nothing of kinds trains.
KIND_FORMS = {
    "ids": KindForm(IDS),
    "any-kind": KindForm(IDS, validated_on_all=True),
    "weighted": KindForm(IDS, weighted=True),
    "kinds": KindForm(KINDS),
    "kinds-weighted": KindForm(KINDS, weighted=True),
}
K = 10
# What a difference is tested in, and the form that the others are compared with.
DECISIVE = f"ndcg@{K}"
AGAINST = "ids"


def measure_features(
    logs: Path,
    *,
    datasets: list[str],
    out: Path = Path("results/features.jsonl"),
    runs: Path = Path("runs/features"),
    forms: list[str] | None = None,
    attentions: list[str] | None = None,
    seeds: list[int] | None = None,
    max_len: int = 200,
    hidden_size: int = 128,
    id_dropout: float = 0.1,
    wanted: str = "",
    targets: str = "",
    last_events: int = 1,
    epochs: int = 100,
    tokens_per_batch: int = 4_096,
    validation_cases: int = 10_000,
) -> None:
    """Measure forms of input side by side on prepared logs, into a results file.

    Args:
        logs: folder with a prepared log for each data set
        datasets: their names
        out: JSONL file that gets a line for each training
        runs: where the run folders go; training that was stopped goes on
        forms: ids, gap, rotary, gap-rotary, gap-request, gap-request-clock, content,
            gap-request-content, kinds-seen, kinds, context, users; with a wanted kind ids,
            any-kind, weighted, kinds, kinds-weighted; without it those that the log allows
        attentions: blossom, full; both without it
        seeds: of the training; 0 without it
        max_len: longest history, in events
        hidden_size: width of the model
        id_dropout: with content, share of items seen by it alone in a step
        wanted: kind of event that is to be recommended; all without it
        targets: how much the kinds count in training, such as buy=1,click=0.1
        last_events: of each user, that are tested one by one
        epochs: most epochs
        tokens_per_batch: events in a batch
        validation_cases: most cases in a validation

    Raises:
        ConfigError: a form or a number is wrong; nothing is begun.
    """
    known = KIND_FORMS if wanted else {name: KindForm(inputs) for name, inputs in FORMS.items()}
    for form in forms or ():
        if form not in known:
            raise ConfigError(f"{form!r} is not known: choose from {', '.join(known)}")
    if bool(wanted) != bool(targets):
        raise ConfigError(f"wanted is {wanted!r} and targets {targets!r}: give both or neither")
    seeds = seeds or [0]
    evaluation = EvaluationConfig(kinds=wanted, last_events=last_events)
    choices = itertools.product(datasets, seeds, attentions or ["blossom", "full"])
    for dataset, seed, attention in choices:
        for form in forms or _measurable(known, logs / dataset):
            inputs, weighted, validated_on_all = known[form]
            options = inputs | {"attention": attention, "id_dropout": id_dropout}
            model = ModelConfig(max_len=max_len, hidden_size=hidden_size, **options)
            training = TrainingConfig(
                epochs=epochs,
                seed=seed,
                tokens_per_batch=tokens_per_batch,
                validation_users=validation_cases,
                targets=targets if weighted else "",
            )
            config = RunConfig(model, training, evaluation)
            check(config)
            place = runs / f"{dataset}-{attention}"
            of_seeds = seeds if seed == seeds[-1] else ()
            study = _Study(place, form, out, validated_on_all, of_seeds)
            print(dataset, attention, form, seed, study.measure(logs / dataset, config), flush=True)


def _measurable(known: dict[str, KindForm], folder: Path) -> list[str]:
    """Forms whose inputs the log has."""
    from blossomrec.data.log import EventLog
    from blossomrec.models.inputs import resolve_inputs

    log, found = EventLog.open(folder), []
    for name, form in known.items():
        try:
            resolve_inputs(RunConfig(ModelConfig(**form.inputs)), log)
        except ConfigError:
            continue
        found.append(name)
    return found


@dataclasses.dataclass(frozen=True)
class _Study:
    """Where a form of one data set is measured: runs are ``place-form-seed``.

    seeds: those over which it is compared with ``AGAINST``; none before the last one is measured.
    """

    place: Path
    form: str
    out: Path
    validated_on_all: bool
    seeds: Sequence[int]

    def run(self, form: str, seed: int) -> Path:
        """The run folder of a form."""
        return self.place.with_name(f"{self.place.name}-{form}-{seed}")

    def measure(self, folder: Path, config: RunConfig) -> dict[str, float]:
        """Train and evaluate; appends the line."""
        from benchmarks.results import append_result, provenance
        from blossomrec.data.log import EventLog
        from blossomrec.data.split import make_split
        from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
        from blossomrec.measure import evaluate_run
        from blossomrec.models import build_model
        from blossomrec.models.inputs import resolve_inputs
        from blossomrec.training import train
        from blossomrec.training.state import seeded

        log = EventLog.open(folder)
        config = resolve_inputs(config, log)
        run, model_config = self.run(self.form, config.training.seed), config.model
        split = make_split(log, config.evaluation)
        if self.validated_on_all:
            split = validated_on_all(split, config.evaluation.last_events)
        with seeded(config.training.seed):
            model = build_model(model_config, log.num_items, log.tables)
            result = train(model, log, split, config, run, progress=False)
        evaluation = evaluate_run(run, log)
        save_evaluation(evaluation, evaluation_path(run))
        device = str(next(model.parameters()).device)
        line = {
            "dataset": folder.name,
            "model": "SASRec",
            "attention": model_config.attention,
            "fusion": "union" if model_config.fusion == "union" else model_config.gate,
            "time": times_of(model_config),
            "request_time": model_config.request_time == "on",
            "content": model_config.content == "on",
            "kinds": kinds_of(model_config),
            "context": model_config.context == "on",
            "users": model_config.user_table == "on",
            "targets": config.training.targets,
            "validated_on_all": self.validated_on_all,
            "seed": config.training.seed,
            "max_len": model_config.max_len,
            "hidden_size": model_config.hidden_size,
            "protocol": evaluation.protocol.split,
            "ranking": evaluation.protocol.label,
            "metrics": _rounded(evaluation.metrics),
            "kind_metrics": {part.kind: _rounded(part.metrics) for part in evaluation.kind_slices},
            "cold_metrics": cold_metrics(model, log, split, np.asarray(evaluation.ranks)),
            "validation": _rounded(result.validation),
            "epochs": result.epochs,
        }
        paired = self._paired()
        append_result(self.out, line | paired | provenance(device))
        return {DECISIVE: line["metrics"][DECISIVE], **line["cold_metrics"], **paired}

    def _paired(self) -> dict[str, Any]:
        """The test against ``AGAINST``, after the last seed and where that form was measured."""
        from blossomrec.evaluation.evaluation import evaluation_path

        paths = [
            [evaluation_path(self.run(form, seed)) for seed in self.seeds]
            for form in (self.form, AGAINST)
        ]
        there = all(path.exists() for path in itertools.chain(*paths))
        if not self.seeds or self.form == AGAINST or not there:
            return {}
        test = paired_numbers(*paths)
        return {"paired": {"against": AGAINST, "seeds": list(self.seeds), **test}}


def paired_numbers(ours: Sequence[Path], theirs: Sequence[Path]) -> dict[str, float]:
    """The test over users of ``DECISIVE`` in saved evaluations of seeds, first minus second."""
    from blossomrec.evaluation.evaluation import load_evaluation
    from blossomrec.evaluation.significance import compare

    first, second = (
        over_seeds([load_evaluation(path) for path in each]) for each in (ours, theirs)
    )
    test = compare(first, second)[DECISIVE]
    numbers = {"difference": test.difference, "low": test.low, "high": test.high}
    return _rounded(numbers | {"p_value": test.p_permutation})


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in numbers.items()}


def validated_on_all(split: Split, last: int) -> Split:
    """The same test, validated on the last events of any kind before the validation targets.

    Of each tested user ``last`` events, which then are not trained on.
    """
    users = np.unique(split.test.users)
    users = users[split.train_end[users] > last]
    train_end = split.train_end.copy()
    train_end[users] -= last
    ends = (train_end[users, None] + np.arange(last)).ravel()
    return Split(train_end, Cases(np.repeat(users, last), ends, ends + 1), split.test)


def over_seeds(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of the same cases as one, whose metrics of a user are the mean of theirs.

    Only for cases that have a single target.
    """
    first = evaluations[0]
    order = np.argsort(np.tile(first.users, len(evaluations)), kind="stable")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in evaluations])[order]

    arrays = {name: joined(name) for name in ("users", "lengths", "ranks")}
    others = dict.fromkeys(("top", "popularity", "kinds", "of_kinds"))
    offsets = np.arange(len(order) + 1)
    return dataclasses.replace(first, offsets=offsets, **arrays, **others)


def times_of(model: ModelConfig) -> str:
    """What a model sees of times, as words joined by a plus sign; "none" without any."""
    parts = {
        "gap": model.time_gap == "on",
        "rotary": model.time_share > 0,
        "clock": model.clock == "on",
    }
    return "+".join(name for name, there in parts.items() if there) or "none"


def kinds_of(model: ModelConfig) -> str | bool:
    """What a model knows of kinds: False, "seen", "asked" or "seen, asked"."""
    parts = {"seen": model.event_kinds == "on", "asked": model.request_kind == "on"}
    return ", ".join(name for name, there in parts.items() if there) or False


def cold_metrics(
    model: SequenceModel, log: EventLog, split: Split, ranks: np.ndarray
) -> dict[str, float]:
    """Recall of targets without a training event, among all items and among such items alone."""
    import torch

    from blossomrec.data.batches import HistoryBatches
    from blossomrec.training.setup import training_counts

    counts = training_counts(log, split.train_end)
    cold = counts == 0
    test = split.test
    targets = np.asarray(log.items)[np.asarray(log.offsets)[test.users] + test.history_end]
    cases = np.flatnonzero(cold[targets])
    if not len(cases):
        return {}
    device, rows = next(model.parameters()).device, np.flatnonzero(cold)
    hits, popular = [], []
    by_categories = popularity_of_categories(log, counts)
    batches = HistoryBatches(
        log,
        test.users[cases],
        test.history_end[cases],
        max_len=model.max_len,
        tokens_per_batch=65_536,
        inputs=model.inputs,
    )
    for part, batch in batches:
        scores = model.scores(model.queries(batch.to(device)), 0, log.num_items)
        own = torch.from_numpy(targets[cases[part]].astype(np.int64)).to(device)[:, None]
        among = scores[:, torch.from_numpy(rows).to(device)]
        wanted = targets[cases[part]]
        popular.append((by_categories[rows] >= by_categories[wanted][:, None]).sum(1) <= K)
        hits.append(((among >= scores.gather(1, own)).sum(1) <= K).cpu().numpy())
    return {
        "targets": len(cases),
        f"recall@{K}": round(float((ranks[cases] < K).mean()), 6),
        f"recall@{K} among cold items": round(float(np.concatenate(hits).mean()), 6),
        f"recall@{K} by popularity of categories": round(float(np.concatenate(popular).mean()), 6),
    }


def popularity_of_categories(log: EventLog, counts: np.ndarray) -> np.ndarray:
    """Of each item, training events of all items that share its categories, float64 [I].

    Categories are those of the table's first column of them; 0 without one.
    """
    table = log.item_features or {}
    found = [one for one in table.values() if isinstance(one, Categories)]
    if not found:
        return np.zeros(log.num_items)
    column = found[0]
    events = np.bincount(
        column.values, np.repeat(counts, np.diff(column.offsets)), minlength=column.size
    )
    return np.add.reduceat(events[column.values], np.asarray(column.offsets[:-1]))


def prepare_purchases(folder: Path) -> EventLog:
    """The simulated log of clicks and purchases; a purchase follows from the one before it."""
    from blossomrec.data.log import EventLog
    from blossomrec.data.simulate import PurchaseConfig, SimulationConfig, simulate_purchases

    events = simulate_purchases(
        SimulationConfig(users=1_200, items=800, events_per_user=60, min_events=30, max_events=150),
        PurchaseConfig(share=0.15, goods=100, needs=4),
    )
    return EventLog.prepare(events.drop("predictable"), folder, kind="kind", time_unit="seconds")


def prepare_quantities(source: Path, folder: Path, *, users: int = 600) -> EventLog:
    """Of grocery households, lines of one piece and of "several" as two kinds of events.

    Args:
        source: events with user_id, item_id, timestamp and quantity
        folder: of the log
        users: how many, of 50 to 400 events of items that all users have 20 of, drawn with seed 0
    """
    import polars as pl

    from blossomrec.data.log import EventLog

    kind = pl.when(pl.col("quantity") >= 2).then(pl.lit("several")).otherwise(pl.lit("one"))
    events = pl.read_parquet(source).filter(pl.len().over("item_id") >= 20)
    known = events.group_by("user_id").len().filter(pl.col("len").is_between(50, 400))
    chosen = known["user_id"].sort().sample(users, seed=0)
    events = events.filter(pl.col("user_id").is_in(chosen.implode())).with_columns(
        kind.alias("kind")
    )
    return EventLog.prepare(
        events.select("user_id", "item_id", "timestamp", "kind"),
        folder,
        kind="kind",
        min_item_events=20,
    )
