"""Do explanations name what counts? Events are removed, and the score is looked at again.

    blossomrec train LOG RUN
    python -m benchmarks explain RUN --out results/serving.jsonl

For each of some users of the run's log the best recommendation is explained; then its score is
computed without five events of the history: the five that raise it most by the explanation, five at
random (mean of ten draws), five at random among the last twenty, the last five, and the five with
the most attention in the last layer. Fields: ``change``, the mean absolute change of the score by
kind; ``ratio``, explained over random; ``ms_by_length``, median time of an explanation of random
histories, one thread.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import append_result, provenance
from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.explanation.explain import explain
from blossomrec.explanation.shares import Explanation
from blossomrec.measure import open_log
from blossomrec.models.sequence import SequenceModel
from blossomrec.run.description import read_run_config
from blossomrec.run.weights import load_model

REMOVED, DRAWS, SHORTEST, RECENT = 5, 10, 40, 20
LENGTHS, TIMES = (200, 2_000, 20_000), 9


def best_item(model: SequenceModel, history: History) -> int:
    """The best recommendation that is new."""
    scores = model.scores(model.queries(pack([history], model.inputs)), 0, model.num_items)[0]
    scores[torch.from_numpy(history.items.astype(np.int64))] = -torch.inf
    return int(scores.argmax())


def choices(found: Explanation, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """What is removed: a name and places in the history; a name may stand several times."""
    length, last = len(found.contributions), found.layers[-1]
    long, short = last.gates.mean(0)
    attention = long * last.long.weights + short * last.short.weights
    chosen = [
        ("explained", np.argsort(-found.contributions)[:REMOVED]),
        ("attended", np.argsort(-attention)[:REMOVED]),
        ("last", np.arange(length - REMOVED, length)),
    ]
    for _ in range(DRAWS):
        chosen.append(("random", rng.choice(length, REMOVED, replace=False)))
        recent = length - 1 - rng.choice(RECENT, REMOVED, replace=False)
        chosen.append(("random_recent", recent))
    return chosen


@torch.no_grad()
def ablate(model: SequenceModel, history: History, rng: np.random.Generator) -> dict[str, float]:
    """Mean change of the score by what is removed; for no moment in particular."""
    history = history.asked_for(-1)
    item = best_item(model, history)
    found = explain(model, history, item)
    chosen = choices(found, rng)
    left = [history.map(partial(np.delete, obj=places, axis=0)) for _, places in chosen]
    queries = model.queries(pack(left, model.inputs))
    scores = model.scores(queries, item, item + 1)[:, 0].tolist()
    changes = defaultdict(list)
    for (name, _), score in zip(chosen, scores, strict=True):
        changes[name].append(abs(score - found.score))
    return {name: float(np.mean(each)) for name, each in changes.items()}


def milliseconds(model: SequenceModel, length: int, rng: np.random.Generator) -> float:
    """Median time of an explanation."""
    seconds = []
    for _ in range(TIMES):
        history = History(rng.integers(0, model.num_items, length)).asked_for(-1)
        start = time.perf_counter()
        explain(model, history, 0)
        seconds.append(time.perf_counter() - start)
    return round(float(np.median(seconds)) * 1e3, 2)


def measure_removed(run: Path, *, users: int = 300, out: Path | None = None) -> None:
    """How much the score changes without the events that an explanation names, beside others.

    Args:
        run: folder of a trained run
        users: how many users' best recommendations are explained
        out: JSONL file to which a line is appended; none without it
    """
    torch.set_num_threads(1)
    info, model = read_run_config(run), load_model(run, "cpu").eval()
    log, rng = open_log(run, info, None), np.random.default_rng(0)
    long = np.flatnonzero(np.diff(log.offsets) >= SHORTEST)
    chosen = rng.permutation(long)[:users]
    changes, lengths = defaultdict(list), []
    for user in chosen.tolist():
        history = log.history(user)[-model.max_len :]
        lengths.append(len(history))
        for name, change in ablate(model, history, rng).items():
            changes[name].append(change)
    mean = {name: round(float(np.mean(each)), 4) for name, each in changes.items()}
    line = {
        "scenario": "explain",
        "dataset": info.data.name,
        "users": len(chosen),
        "history": round(float(np.mean(lengths))),
        "removed": REMOVED,
        "change": mean,
        "ratio": round(mean["explained"] / mean["random"], 2),
        "ms_by_length": {str(length): milliseconds(model, length, rng) for length in LENGTHS},
        **provenance(),
    }
    if out is not None:
        append_result(out, line)
    print(f"{mean}, {line['ratio']} times random, milliseconds {line['ms_by_length']}")
