"""The best items of a large catalogue on a processor, by vectors in 8 bits and by all scores.

    python -m benchmarks ranking-quantised --out results/speed.jsonl

Both ways are called in turn, through what ``recommend`` ranks by, on as many threads as PyTorch
has; before anything is timed their lists and scores are compared, and must be the same bit for bit.
Vectors are drawn alike in all directions ("even"), or with variances that fall from direction to
direction as the squares of 1, 1/2, 1/3, ... ("uneven"), which tells less of them in 8 bits. With
filters half of the items are not allowed, and each user has seen so many.

    from benchmarks.speed.quantised_ranking import measure_quantised
    measure_quantised(items=[100_000], sizes=[64], users=[1])
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.timing import seconds
from blossomrec.data.batch import Batch, pack
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.evaluation.quantised_top_k import prepare
from blossomrec.evaluation.top_k import Seen, TopK
from blossomrec.models.fused.quantised_items import KeptCopy

EVEN, UNEVEN = "even", "uneven"
# Items that a user has seen.
SEEN = 200
# Calls of either way: as many as fit in so many seconds, within bounds.
SECONDS, LEAST, MOST = 2.0, 2, 15


class Products:
    """Scores by products; a history is the row of its query."""

    max_len, inputs = 1, ("items",)

    def __init__(self, vectors: Tensor, states: Tensor):
        self.num_items, self._vectors, self._states = len(vectors), vectors, states

    def queries(self, batch: Batch) -> Tensor:
        return self._states[batch.items]

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        return queries @ self._vectors[start:stop].T


class Quantised(Products):
    """The same, of which a copy in 8 bits is kept."""

    def __init__(self, vectors: Tensor, states: Tensor, quantised: KeptCopy):
        super().__init__(vectors, states)
        self.quantised = quantised

    def score_vectors(self) -> Tensor:
        return self._vectors


@dataclass(frozen=True)
class Problem:
    """Vectors, and what is left out: items for all, and items for each user."""

    vectors: Tensor
    states: Tensor
    items: np.ndarray | None
    seen: Seen | None

    @staticmethod
    def of(vectors: Tensor, users: int, spread: Tensor, filtered: bool) -> Problem:
        generator = torch.Generator().manual_seed(1)
        states = spread * torch.randn(users, len(spread), generator=generator)
        if not filtered:
            return Problem(vectors, states, None, None)
        seen = np.random.default_rng(0).integers(0, len(vectors), users * SEEN)
        allowed = np.arange(0, len(vectors), 2)
        return Problem(vectors, states, allowed, Seen(np.repeat(np.arange(users), SEEN), seen))

    def ranker(self, scorer: Products, k: int) -> TopK:
        return TopK(scorer, k, len(self.states), items=self.items)

    def best(self, ranker: TopK) -> tuple[np.ndarray, np.ndarray]:
        users = [np.array([row]) for row in range(len(self.states))]
        return ranker.of(pack(users), self.seen)


def spread_of(size: int, vectors: str) -> Tensor:
    """Deviations of the numbers of a vector, float32 [size]."""
    return torch.ones(size) if vectors == EVEN else 1 / torch.arange(1, size + 1)


def compared(problem: Problem, k: int, kept: KeptCopy) -> dict[str, float]:
    """Seconds of a call by either way.

    Raises:
        BlossomRecError: they do not give the same.
    """
    plain = problem.ranker(Products(problem.vectors, problem.states), k)
    ours = problem.ranker(Quantised(problem.vectors, problem.states, kept), k)
    for one, other in zip(problem.best(plain), problem.best(ours), strict=True):
        if not np.array_equal(one, other):
            raise BlossomRecError(f"lists of {len(problem.vectors):,} items are not the same")
    times: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() - begun < SECONDS):
        pair = (seconds(lambda way=way: problem.best(way), "cpu") for way in (plain, ours))
        times.append((next(pair), next(pair)))
    float32, quantised = (statistics.median(each) for each in zip(*times, strict=True))
    return {"float32_seconds": round(float32, 6), "seconds": round(quantised, 6)}


def lines(
    items: int, size: int, vectors: str, users: list[int], ks: list[int]
) -> Iterator[dict[str, Any]]:
    """A line of each case of a catalogue."""
    spread = spread_of(size, vectors)
    table = spread * torch.randn(items, size, generator=torch.Generator().manual_seed(0))
    # What is tried out once for vectors of a size is no part of a copy.
    prepare(Quantised(table, table[:1], KeptCopy()))
    kept = KeptCopy()
    making = seconds(lambda: prepare(Quantised(table, table[:1], kept)), "cpu")
    for count, k, filtered in product(users, ks, (False, True)):
        yield {
            "bench": "ranking-quantised",
            "items": items,
            "hidden": size,
            "vectors": vectors,
            "users": count,
            "k": k,
            "filters": filtered,
            "threads": torch.get_num_threads(),
            "copy_seconds": round(making, 4),
            "copy_mib": round(kept.nbytes / 2**20, 1),
            **compared(Problem.of(table, count, spread, filtered), k, kept),
        }


def measure_quantised(
    *,
    items: list[int] | None = None,
    sizes: list[int] | None = None,
    vectors: list[str] | None = None,
    users: list[int] | None = None,
    ks: list[int] | None = None,
    out: Path | None = None,
) -> None:
    """Time of the best items of a catalogue on a processor, by vectors in 8 bits and in float32.

    Args:
        items: sizes of the catalogue; 10,000, 100,000 and 1,000,000 without it
        sizes: of the vectors; 64 and 128 without it
        vectors: how they are drawn, even or uneven; both without it
        users: for how many is ranked at once; 1, 8, 64 and 1,024 without it
        ks: lengths of the lists; 10 and 100 without it
        out: JSONL file to which a line for each measurement is appended

    Raises:
        BlossomRecError: a list is wrong; nothing more is timed.
    """
    for name in vectors or ():
        if name not in (EVEN, UNEVEN):
            raise ConfigError(f"vectors is {name!r}: choose from {EVEN}, {UNEVEN}")
    origin = provenance("cpu")
    cases = product(items or [10_000, 100_000, 1_000_000], sizes or [64, 128])
    for (count, size), name in product(cases, vectors or (EVEN, UNEVEN)):
        for line in lines(count, size, name, users or [1, 8, 64, 1_024], ks or [10, 100]):
            line |= origin
            print(json.dumps(line), flush=True)
            if out is not None:
                append_result(out, line)
