"""Choosing k items from a list of the best: so many of a category, and unlike each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from blossomrec.data.features import Categories
from blossomrec.data.windows import boundaries, gather_index

# Items that are looked at for each that is wanted, where they are to be unlike each other.
POOL = 10


class Limit(NamedTuple):
    """At most ``count`` items with each of the categories; unknown ones do not count."""

    categories: Categories
    count: int

    def numbers(self, rows: np.ndarray) -> list[list[int]]:
        """The known categories of items."""
        values, offsets = map(np.asarray, (self.categories.values, self.categories.offsets))
        lengths = offsets[rows + 1] - offsets[rows]
        flat = values[gather_index(offsets[rows], lengths)].tolist()
        edges = pairwise(boundaries(lengths).tolist())
        return [[each for each in flat[start:stop] if each] for start, stop in edges]


class _Room:
    """What the limits leave while items are chosen one by one."""

    def __init__(self, limits: Sequence[Limit], rows: np.ndarray):
        self._counts = [limit.count for limit in limits]
        self._numbers = [limit.numbers(rows) for limit in limits]
        self._taken = [Counter[int]() for _ in limits]

    def has(self, position: int) -> bool:
        """Whether there is room for the item at a position of the list."""
        columns = zip(self._counts, self._numbers, self._taken, strict=True)
        return all(
            taken[number] < count
            for count, numbers, taken in columns
            for number in numbers[position]
        )

    def take(self, position: int) -> None:
        """Count the item at a position."""
        for numbers, taken in zip(self._numbers, self._taken, strict=True):
            taken.update(numbers[position])


@dataclass(frozen=True)
class RuledChoice:
    """A choice by limits and diversity, as of :class:`blossomrec.evaluation.top_k.Choice`.

    Attributes:
        limits: of columns of categories.
        diversity: see :class:`Rules`.
        vectors: gives of item rows, int64 [n], vectors of length 1, float32 [n, D]; None where
            ``diversity`` is 0.
    """

    limits: tuple[Limit, ...] = ()
    diversity: float = 0.0
    vectors: Callable[[np.ndarray], np.ndarray] | None = None

    def pool(self, k: int) -> int:
        """How many of the best items to choose from at first."""
        return POOL * k if self.diversity else 2 * k

    def choose(self, rows: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
        """Positions of up to k items in the list, in the order in which they are recommended."""
        room = _Room(self.limits, rows)
        if self.vectors is not None and len(rows):
            return self._unlike(room, self.vectors(rows), scores.astype(np.float64), k)
        chosen = list[int]()
        for position in range(len(rows)):
            if len(chosen) == k:
                break
            if room.has(position):
                room.take(position)
                chosen.append(position)
        return np.array(chosen, dtype=np.int64)

    def _unlike(self, room: _Room, vectors: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
        """By maximal marginal relevance; the earlier one of equals."""
        chosen = list[int]()
        spread = scores[0] - scores[-1]
        relevance = (1 - self.diversity) * (scores - scores[-1]) / (spread if spread > 0 else 1)
        alike = np.full(len(scores), -np.inf)
        marginal = relevance.copy()
        while len(chosen) < k:
            position = int(marginal.argmax())
            if marginal[position] == -np.inf:
                break
            # Chosen now or never: a category that is full stays full.
            relevance[position] = marginal[position] = -np.inf
            if room.has(position):
                room.take(position)
                chosen.append(position)
                alike = np.maximum(alike, vectors @ vectors[position])
                marginal = relevance - self.diversity * alike
        return np.array(chosen, dtype=np.int64)
