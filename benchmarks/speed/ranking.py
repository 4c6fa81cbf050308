"""The best items of a large catalogue for many users on a GPU, beside the product of their vectors.

    python -m benchmarks ranking --out results/speed.jsonl

``product`` is that of all users and items by the matrix library, in the type of the vectors, some
users at a time, of which nothing is kept; ``topk`` besides fills in what is left out and takes the
best of each row by ``torch.topk``. Ours has exact scores in float32 whatever the type, and its time
includes what it makes of the vectors. With filters half of the items are not allowed, and each user
has seen so many. Before anything is timed, the lists of some users are compared with a sort of
products in float64. It needs neither polars nor cyclopts:

    from benchmarks.speed.ranking import measure_ranking
    measure_ranking(items=[100_000], sizes=[128])
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import peak_mib
from benchmarks.speed.instruments.timing import seconds
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.evaluation.product_top_k import ProductTopK
from blossomrec.evaluation.scoring import SCORE_ELEMENTS
from blossomrec.evaluation.top_k import Seen

OURS, PRODUCT, TOPK = "blossomrec", "product", "topk"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Items that a user has seen.
SEEN = 200
# Scores that the matrix library has in memory.
CHUNK = 1 << 29
# Slow ones are timed on so many users.
FEW_USERS = 1_024
CHECKED_USERS = 4
# Calls to warm up, and those of which the median time counts, the host's work included.
WARM_UP, CALLS = 2, 7
# Of the product of two norms.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Problem:
    """Vectors of users and items, and what is left out: items for all, and items for each user."""

    queries: Tensor
    vectors: Tensor
    offsets: Tensor | None
    seen: Seen | None

    @staticmethod
    def of(
        users: int, items: int, size: int, dtype: torch.dtype, filtered: bool, device: str
    ) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        queries, vectors = (
            torch.randn(count, size, generator=generator, device=device).to(dtype)
            for count in (users, items)
        )
        if not filtered:
            return Problem(queries, vectors, None, None)
        offsets = torch.zeros(items, device=device)
        offsets[::2] = -torch.inf
        rng = np.random.default_rng(0)
        histories = np.repeat(np.arange(users), SEEN)
        return Problem(
            queries, vectors, offsets, Seen(histories, rng.integers(0, items, users * SEEN))
        )

    def part(self, users: int) -> Problem:
        """Of the first users."""
        seen = None if self.seen is None else self.seen.part(0, users)
        return Problem(self.queries[:users], self.vectors, self.offsets, seen)

    def ours(self, k: int) -> tuple[Tensor, Tensor]:
        top = ProductTopK(self.vectors, k, self.offsets, score_elements=SCORE_ELEMENTS)
        left_out = None if self.seen is None else self.seen.on(self.queries.device)
        return top.of(self.queries.float(), left_out)

    def product(self) -> None:
        for _ in self._products():
            pass

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        found, start = [], 0
        for scores in self._products():
            stop = start + len(scores)
            if self.offsets is not None:
                scores += self.offsets.to(scores.dtype)
            if self.seen is not None:
                scores[self.seen.part(start, stop).on(scores.device)] = -torch.inf
            found.append(scores.topk(k))
            start = stop
        values, rows = zip(*found, strict=True)
        return torch.cat(rows), torch.cat(values)

    def _products(self) -> Iterator[Tensor]:
        for part in self.queries.split(max(1, CHUNK // len(self.vectors))):
            yield part @ self.vectors.T


def error(problem: Problem, k: int) -> float:
    """Largest error of a score of a list, of its item or of what belongs in its place.

    As a share of the product of the norms; infinite where other items are left out.
    """
    users = min(CHECKED_USERS, len(problem.queries))
    rows, scores = (each[:users] for each in problem.ours(k))
    some = problem.part(users)
    exact = some.queries.double() @ some.vectors.double().T
    if some.offsets is not None:
        exact += some.offsets
    if some.seen is not None:
        exact[some.seen.on(exact.device)] = -torch.inf
    best = exact.topk(k).values
    there = best > -torch.inf
    if not torch.equal(rows >= 0, there):
        return float("inf")
    errors = [(scores - wanted)[there].abs() for wanted in (best, exact.gather(1, rows.clamp(0)))]
    norms = (some.queries.float().norm(dim=1).max(), some.vectors.float().norm(dim=1).max())
    return float(max(each.max() for each in errors) / (norms[0] * norms[1]))


def lines(
    problem: Problem, ks: list[int], shared: dict[str, Any], device: str
) -> Iterator[dict[str, Any]]:
    """A line of each implementation, and of each k where it matters.

    Args:
        shared: what all lines say.
    """
    few = problem.part(FEW_USERS)
    runs: list[tuple[str, int | None, int, Callable[[], Any]]] = []
    if problem.offsets is None:
        runs.append((PRODUCT, None, len(problem.queries), problem.product))
    for k in ks:
        runs.append((OURS, k, len(problem.queries), lambda k=k: problem.ours(k)))
        runs.append((TOPK, k, len(few.queries), lambda k=k: few.topk(k)))
    for name, k, users, run in runs:
        time = statistics.median([seconds(run, device) for _ in range(WARM_UP + CALLS)][WARM_UP:])
        yield {
            "bench": "ranking",
            "impl": name,
            "users": users,
            "k": k,
            **shared,
            "seconds": round(time, 6),
            "users_per_second": round(users / time),
            "peak_mib": round(peak_mib(run, device), 1),
        }


def measure_ranking(
    *,
    items: list[int] | None = None,
    sizes: list[int] | None = None,
    ks: list[int] | None = None,
    dtypes: list[str] | None = None,
    users: int = 10_000,
    out: Path | None = None,
) -> None:
    """Time and memory of the best items of a catalogue for many users, beside the bare product.

    Args:
        items: sizes of the catalogue; 100,000 and 1,000,000 without it
        sizes: of the vectors; 64 and 128 without it
        ks: lengths of the lists; 10 and 100 without it
        dtypes: of the vectors; float32 and bfloat16 without it
        users: for whom is ranked
        out: JSONL file to which a line for each measurement is appended

    Raises:
        BlossomRecError: a list is wrong; nothing more is timed.
    """
    device, ks = "cuda" if torch.cuda.is_available() else "cpu", ks or [10, 100]
    for dtype in dtypes or DTYPES:
        if dtype not in DTYPES:
            raise ConfigError(f"dtypes is {dtype!r}: choose from {', '.join(DTYPES)}")
    origin = provenance(device)
    cases = product(items or [100_000, 1_000_000], sizes or [64, 128], dtypes or DTYPES)
    for count, size, dtype in cases:
        for filtered in (False, True):
            problem = Problem.of(users, count, size, DTYPES[dtype], filtered, device)
            wrong = max(error(problem, k) for k in ks)
            if not wrong < TOLERANCE:
                raise BlossomRecError(f"scores of {count:,} items are {wrong:.1e} from their sort")
            shared = {"items": count, "hidden": size, "dtype": dtype}
            shared |= {"filters": filtered, "error": wrong}
            for line in lines(problem, ks, shared, device):
                line |= origin
                print(json.dumps(line), flush=True)
                if out is not None:
                    append_result(out, line)
