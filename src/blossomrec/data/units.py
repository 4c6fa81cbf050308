"""Units of time, and what times in any of them are in seconds since 1970."""

from __future__ import annotations

from typing import Any

import numpy as np

Time = int | float
# How many of each there are in a second. As seconds, a time since 1970 has 9 or 10 digits from 1973
# to 2286; in another unit it has more of them, so that it shows which one it is in.
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
EPOCH_SECONDS = (10**8, 10**10)
# Numbers that tell the order of a user's events and nothing else.
ORDER = "order"


def unit_of(timestamp: Time) -> str | None:
    """The unit in which a number looks like a time since 1970; None where it looks like none.

    >>> unit_of(1_700_000_000), unit_of(1_700_000_000_000), unit_of(17)
    ('seconds', 'milliseconds', None)
    """
    low, high = EPOCH_SECONDS
    for unit, size in UNITS.items():
        if low * size <= timestamp < high * size:
            return unit
    return None


def unit_of_times(first: Time, last: Time) -> str:
    """The unit in which the first and the last time of a log look like times, or ``"order"``."""
    unit = unit_of(first)
    return unit if unit is not None and unit == unit_of(last) else ORDER


class Seconds:
    """An array of times, each made whole seconds since 1970 when it is looked at.

    Args:
        times: int64 or float64 [E], such as a memory-mapped array.
        unit: one of ``UNITS``.
    """

    def __init__(self, times: np.ndarray, unit: str):
        self._times, self._per_second = times, UNITS[unit]

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """int64, of the times at ``rows``, anything that indexes an array."""
        return seconds(self._times[rows], self._per_second)


def seconds(times: Any, per_second: int) -> np.ndarray:
    """Times as whole seconds, rounded down: int64."""
    found = np.asarray(times)
    return (found if per_second == 1 else found // per_second).astype(np.int64)
