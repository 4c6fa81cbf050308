"""Accuracy with times, moments and content among the inputs, beside ids alone, on prepared logs.

Items without a training event are measured by themselves, among all items and among their like.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import Several
from blossomrec.config import ModelConfig, RunConfig, TrainingConfig, check
from blossomrec.data.features import Categories
from blossomrec.errors import ConfigError

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import Split
    from blossomrec.models.sequence import SequenceModel

IDS = {"time_gap": "off", "request_time": "off", "content": "off"}
FORMS: dict[str, dict[str, Any]] = {
    "ids": IDS,
    "gap": IDS | {"time_gap": "on"},
    "rotary": IDS | {"time_share": 0.25},
    "gap-rotary": IDS | {"time_gap": "on", "time_share": 0.25},
    "gap-request": IDS | {"time_gap": "on", "request_time": "on"},
    "gap-request-clock": IDS | {"time_gap": "on", "request_time": "on", "clock": "on"},
    "content": IDS | {"content": "on"},
    "gap-request-content": {"time_gap": "on", "request_time": "on", "content": "on"},
}
K = 10


def measure_features(
    logs: Path,
    *,
    datasets: Several[str],
    out: Path = Path("results/features.jsonl"),
    runs: Path = Path("runs/features"),
    forms: Several[str] | None = None,
    attentions: Several[str] | None = None,
    seeds: Several[int] | None = None,
    max_len: int = 200,
    id_dropout: float = 0.1,
    epochs: int = 100,
) -> None:
    """Measure forms of input side by side on prepared logs, into a results file.

    Args:
        logs: folder with a prepared log for each data set
        datasets: their names
        out: JSONL file that gets a line for each training
        runs: where the run folders go; training that was stopped goes on
        forms: ids, gap, rotary, gap-rotary, gap-request, gap-request-clock, content,
            gap-request-content; all without it
        attentions: blossom, full; both without it
        seeds: of the training; 0 without it
        max_len: longest history, in events
        id_dropout: with content, share of items seen by it alone in a step
        epochs: most epochs

    Raises:
        ConfigError: a form or a number is wrong; nothing is begun.
    """
    for form in forms or ():
        if form not in FORMS:
            raise ConfigError(f"{form!r} is not known: choose from {', '.join(FORMS)}")
    choices = itertools.product(
        datasets, seeds or [0], attentions or ["blossom", "full"], forms or FORMS
    )
    for dataset, seed, attention, form in choices:
        options = FORMS[form] | {"attention": attention, "id_dropout": id_dropout}
        model = ModelConfig(max_len=max_len, **options)
        config = RunConfig(model, TrainingConfig(epochs=epochs, seed=seed))
        check(config)
        run = runs / f"{dataset}-{attention}-{form}-{seed}"
        print(run.name, _measure(logs / dataset, config, run, out), flush=True)


def _measure(folder: Path, config: RunConfig, run: Path, out: Path) -> dict[str, float]:
    """Train and evaluate one form; appends its line."""
    from benchmarks.results import append_result, provenance
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import make_split
    from blossomrec.measure import evaluate_run
    from blossomrec.models import build_model
    from blossomrec.models.inputs import resolve_inputs
    from blossomrec.training import train
    from blossomrec.training.state import seeded

    log = EventLog.open(folder)
    config = resolve_inputs(config, log)
    split = make_split(log, config.evaluation)
    with seeded(config.training.seed):
        model = build_model(config.model, log.num_items, log.tables)
        train(model, log, split, config, run, progress=False)
    evaluation = evaluate_run(run, log)
    device = str(next(model.parameters()).device)
    metrics = {name: round(value, 6) for name, value in evaluation.metrics.items()}
    line = {
        "dataset": folder.name,
        "model": "SASRec",
        "attention": config.model.attention,
        "fusion": config.model.gate,
        "time": times_of(config.model),
        "request_time": config.model.request_time == "on",
        "content": config.model.content == "on",
        "kinds": False,
        "seed": config.training.seed,
        "max_len": config.model.max_len,
        "protocol": "leave-one-out",
        "ranking": "full",
        "metrics": metrics,
        "cold_metrics": cold_metrics(model, log, split, np.asarray(evaluation.ranks)),
    }
    append_result(out, line | provenance(device))
    return {"ndcg@10": metrics["ndcg@10"], **line["cold_metrics"]}


def times_of(model: ModelConfig) -> str:
    """What a model sees of times, as words joined by a plus sign; "none" without any."""
    parts = {
        "gap": model.time_gap == "on",
        "rotary": model.time_share > 0,
        "clock": model.clock == "on",
    }
    return "+".join(name for name, there in parts.items() if there) or "none"


def cold_metrics(
    model: SequenceModel, log: EventLog, split: Split, ranks: np.ndarray
) -> dict[str, float]:
    """Recall of targets without a training event, among all items and among such items alone."""
    import torch

    from blossomrec.data.batches import HistoryBatches
    from blossomrec.training.setup import training_counts

    counts = training_counts(log, split.train_end)
    cold = counts == 0
    offsets = np.asarray(log.offsets)
    targets = np.asarray(log.items)[offsets[1:] - 1]
    users = np.flatnonzero(cold[targets])
    if not len(users):
        return {}
    device, rows = next(model.parameters()).device, np.flatnonzero(cold)
    hits, popular = [], []
    by_categories = popularity_of_categories(log, counts)
    batches = HistoryBatches(
        log,
        users,
        np.diff(offsets)[users] - 1,
        max_len=model.max_len,
        tokens_per_batch=65_536,
        inputs=model.inputs,
    )
    for part, batch in batches:
        scores = model.scores(model.queries(batch.to(device)), 0, log.num_items)
        own = torch.from_numpy(targets[users[part]].astype(np.int64)).to(device)[:, None]
        among = scores[:, torch.from_numpy(rows).to(device)]
        wanted = targets[users[part]]
        popular.append((by_categories[rows] >= by_categories[wanted][:, None]).sum(1) <= K)
        hits.append(((among >= scores.gather(1, own)).sum(1) <= K).cpu().numpy())
    return {
        "targets": len(users),
        f"recall@{K}": round(float((ranks[users] < K).mean()), 6),
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
