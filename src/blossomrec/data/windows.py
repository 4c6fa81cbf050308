"""Histories one after another in one flat array, and the windows that they are cut into."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np


def boundaries(lengths: np.ndarray) -> np.ndarray:
    """Where each of B pieces of ``lengths`` starts, and where the last one ends: int64 [B+1]."""
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=edges[1:])
    return edges


def positions_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., length-1 for one piece after another: int64 [sum of lengths]."""
    edges = boundaries(lengths)
    return np.arange(edges[-1], dtype=np.int64) - np.repeat(edges[:-1], lengths)


def gather_index(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Flat index of the pieces ``start .. start+length-1``, one after another: int64 [sum]."""
    edges = boundaries(lengths)
    return np.arange(edges[-1], dtype=np.int64) + np.repeat(starts - edges[:-1], lengths)


def fill(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Cut pieces, kept in order, into groups of at most ``budget`` tokens.

    A piece longer than the budget is a group of its own. Returns int64 [groups+1], the number of
    the piece with which each group starts and, last, the number of pieces.
    """
    edges = boundaries(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        start = cuts[-1]
        stop = int(np.searchsorted(edges, edges[start] + budget, side="right")) - 1
        cuts.append(max(stop, start + 1))
    return np.asarray(cuts, dtype=np.int64)


def divided(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Numbers of the pieces, rising, of each of ``size`` parts of about the same total length.

    The longest pieces are given first, each to the part that has least.

    >>> [each.tolist() for each in divided(np.array([5, 1, 2, 3]), 2)]
    [[0, 1], [2, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(size)]
    least = [(0, part) for part in range(size)]
    order = np.argsort(-lengths, kind="stable")
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        total, part = least[0]
        parts[part].append(piece)
        heapq.heapreplace(least, (total + length, part))
    return [np.array(sorted(each), dtype=np.int64) for each in parts]


def each_once(values: np.ndarray) -> np.ndarray:
    """What numbers [...] there are, each once, rising.

    ``np.unique`` hashes them, which takes many times as long as a sort.

    >>> each_once(np.array([7, 3, 7])).tolist()
    [3, 7]
    """
    ordered = np.sort(values, axis=None)
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


@dataclass(frozen=True)
class Windows:
    """W windows of a flat array of events: first event and number of events, both int64 [W]."""

    starts: np.ndarray
    lengths: np.ndarray

    def take(self, which: np.ndarray | slice) -> Windows:
        """Some of the windows."""
        return Windows(self.starts[which], self.lengths[which])

    def shuffled(self, rng: np.random.Generator) -> Windows:
        """The same windows in random order."""
        return self.take(rng.permutation(len(self.starts)))


def cut_windows(
    starts: np.ndarray, lengths: np.ndarray, max_len: int, rng: np.random.Generator
) -> Windows:
    """Windows of at most ``max_len`` events that cover every event of each piece exactly once.

    starts, lengths: int64 [B], where the pieces lie in a flat array. A piece of up to ``max_len``
    events is one window. A longer one begins with a window of 1 to ``max_len`` events, uniformly
    drawn, so that over the epochs every event is met with every amount of history before it.
    """
    first = np.minimum(rng.integers(1, max_len + 1, size=len(lengths)), lengths)
    first = np.where(lengths <= max_len, lengths, first)
    counts = 1 + -(-(lengths - first) // max_len)
    number = positions_within(counts)
    piece = np.repeat(np.arange(len(lengths)), counts)
    # Window 0 starts at 0, window k at first + (k-1) max_len.
    start = np.where(number == 0, 0, first[piece] + (number - 1) * max_len)
    stop = np.minimum(first[piece] + number * max_len, lengths[piece])
    return Windows(starts[piece] + start, stop - start)
