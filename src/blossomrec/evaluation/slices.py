"""Metrics by length of history: does a longer history pay?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blossomrec.evaluation.significance import bootstrap_intervals

# First length of each bin; the last one is open.
BINS = (1, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


@dataclass(frozen=True)
class Slice:
    """The users whose history has ``low`` to ``high`` events, both included."""

    low: int
    high: int | None  # None: no upper bound
    users: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def label(self) -> str:
        return f"{self.low:,}+" if self.high is None else f"{self.low:,}–{self.high:,}"


def by_history_length(
    lengths: np.ndarray, per_user: Mapping[str, np.ndarray], *, seed: int = 0
) -> tuple[Slice, ...]:
    """Mean and 95 % bootstrap interval of each metric [U] in every bin that ``lengths`` [U] use."""
    bins = np.searchsorted(BINS, lengths, side="right") - 1
    slices = []
    for number in np.unique(bins).tolist():
        inside = {name: values[bins == number] for name, values in per_user.items()}
        slices.append(
            Slice(
                low=BINS[number],
                high=BINS[number + 1] - 1 if number + 1 < len(BINS) else None,
                users=int(np.count_nonzero(bins == number)),
                metrics={name: float(values.mean()) for name, values in inside.items()},
                intervals=bootstrap_intervals(inside, seed=seed),
            )
        )
    return tuple(slices)
