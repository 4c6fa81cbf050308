"""Metrics by length of history: does a longer history pay?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blossomrec.evaluation.significance import bootstrap_intervals

# Of fewer users a mean says little, and its interval less.
FEW = 30
FEW_NOTE = f"* fewer than {FEW} users: too few to tell"
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

    @property
    def few(self) -> bool:
        """Whether these are too few users to tell anything from."""
        return self.users < FEW

    @property
    def marked_label(self) -> str:
        """The label with a star, of ``FEW_NOTE``, where there are few users."""
        return f"{self.label} *" if self.few else self.label


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
