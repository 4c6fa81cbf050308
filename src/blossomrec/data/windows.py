"""Cutting histories that are longer than the model sees into windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blossomrec.data.ragged import positions_within


@dataclass(frozen=True)
class Windows:
    """W windows of a flat array of events: first event and number of events, both int64 [W]."""

    starts: np.ndarray
    lengths: np.ndarray

    def shuffled(self, rng: np.random.Generator) -> Windows:
        """The same windows in random order."""
        order = rng.permutation(len(self.starts))
        return Windows(self.starts[order], self.lengths[order])


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
