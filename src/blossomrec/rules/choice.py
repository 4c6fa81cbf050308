"""Choosing k items from a list of the best: so many of a category, and unlike each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    def numbers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The categories of items, one item after another, and where each item's begin: [n + 1]."""
        values, offsets = map(np.asarray, (self.categories.values, self.categories.offsets))
        lengths = offsets[rows + 1] - offsets[rows]
        return values[gather_index(offsets[rows], lengths)], boundaries(lengths)

    def full(self, rows: np.ndarray, items: range) -> np.ndarray:
        """Of which items a category has no room after others were chosen, bool [len(items)]."""
        numbers, _ = self.numbers(rows)
        full = np.bincount(numbers, minlength=self.categories.size) >= self.count
        full[0] = False
        offsets = np.asarray(self.categories.offsets[items.start : items.stop + 1])
        values = np.asarray(self.categories.values[offsets[0] : offsets[-1]])
        return np.logical_or.reduceat(full[values], offsets[:-1] - offsets[0])


class _Room:
    """What the limits leave while items of a list are chosen one by one.

    Attributes:
        open: positions that are not chosen and for which there is room, bool [n].
    """

    def __init__(self, limits: Sequence[Limit], rows: np.ndarray):
        self._limits = [(limit.count, *limit.numbers(rows)) for limit in limits]
        self._taken = [Counter[int]() for _ in limits]
        self.open = np.ones(len(rows), bool)

    def take(self, position: int) -> None:
        """Choose the item at a position."""
        self.open[position] = False
        for (count, numbers, offsets), taken in zip(self._limits, self._taken, strict=True):
            own = numbers[offsets[position] : offsets[position + 1]]
            # What is unknown has the number 0.
            for number in filter(None, own.tolist()):
                taken[number] += 1
                if taken[number] == count:
                    where = np.flatnonzero(numbers == number)
                    self.open[np.searchsorted(offsets, where, side="right") - 1] = False


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
        while len(chosen) < k and room.open.any():
            chosen.append(int(room.open.argmax()))
            room.take(chosen[-1])
        return np.array(chosen, dtype=np.int64)

    def closed(self, rows: np.ndarray, items: range) -> np.ndarray | None:
        """Which of some items cannot follow those that were chosen; None where any may."""
        if self.vectors is not None or not self.limits:
            return None
        return np.logical_or.reduce([limit.full(rows, items) for limit in self.limits])

    def _unlike(self, room: _Room, vectors: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
        """By maximal marginal relevance; the earlier one of equals."""
        chosen = list[int]()
        spread = scores.max() - scores.min()
        relevance = (1 - self.diversity) * (scores - scores.min()) / (spread if spread > 0 else 1)
        alike = np.zeros(len(scores))
        while len(chosen) < k and room.open.any():
            marginal = np.where(room.open, relevance - self.diversity * alike, -np.inf)
            position = int(marginal.argmax())
            own = vectors @ vectors[position]
            alike = np.maximum(alike, own) if chosen else own
            chosen.append(position)
            room.take(position)
        return np.array(chosen, dtype=np.int64)
