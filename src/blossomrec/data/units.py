"""Units of time, and what times in any of them are in seconds since 1970."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from blossomrec.errors import ConfigError

Time = int | float
# What callers may give for a point in time.
Moment = int | float | datetime
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


class Whole:
    """An array of whole numbers, each made int64 when it is looked at.

    Args:
        numbers: int32 [E], such as a memory-mapped array.
    """

    def __init__(self, numbers: np.ndarray):
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """int64, the numbers at ``rows``, anything that indexes an array."""
        return self._numbers[rows].astype(np.int64)


class Owners:
    """For each event of all users, one after another, the row of its user.

    Args:
        offsets: int64 [U+1], where each user's events start and the last one's end.
    """

    def __init__(self, offsets: np.ndarray):
        self._offsets = offsets

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """int64, of the events at ``rows``, a slice or whole numbers from 0."""
        events = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return np.searchsorted(self._offsets, events, side="right") - 1


class Following:
    """What stands one further on than the rows that are asked for; nothing follows the last one.

    Args:
        column: such as the times of a log: the time of the next event is the moment for which is
            recommended after an event.
    """

    def __init__(self, column: Seconds | Whole):
        self._column = column

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._column[np.minimum(rows + 1, len(self._column) - 1)]


def seconds(times: Any, per_second: int) -> np.ndarray:
    """Times as whole seconds, rounded down: int64."""
    found = np.asarray(times)
    return (found if per_second == 1 else found // per_second).astype(np.int64)


def as_second(name: str, moment: Moment | None) -> int:
    """A moment that a caller gave as whole seconds since 1970; -1 for None, which is unknown.

    Args:
        moment: a datetime, taken as UTC without a zone, or a number in any of the ``UNITS``.

    Raises:
        ConfigError: it is neither a datetime nor a number that looks like a time since 1970; the
            message names it.
    """
    if moment is None:
        return -1
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return math.floor(aware.timestamp())
    number = isinstance(moment, (int, float, np.integer, np.floating))
    unit = unit_of(moment) if number and not isinstance(moment, bool) else None
    if unit is None:
        raise ConfigError(f"{name} is {moment!r}: a datetime or a time since 1970 is needed")
    return int(seconds(moment, UNITS[unit]))


def moment_of(name: str, text: str | None) -> Moment | None:
    """A moment as it is written on a command line, to be given to :func:`as_second`.

    Raises:
        ConfigError: it is neither ISO 8601 nor a number; the message names it.
    """
    if text is None:
        return None
    for read in (int, float, datetime.fromisoformat):
        with contextlib.suppress(ValueError):
            return read(text)
    raise ConfigError(f"{name} is {text!r}: a datetime or a time since 1970 is needed")


def as_seconds(name: str, moments: Sequence[Moment | None], count: int) -> np.ndarray:
    """Moments of so many events, oldest first: int64 [count].

    Raises:
        ConfigError: there are more or fewer, one is none, or they do not rise.
    """
    listed = list(moments)
    if len(listed) != count:
        raise ConfigError(f"{name} has {len(listed)} entries: the history has {count} events")
    if None in listed:
        place = f"{name}[{listed.index(None)}]"
        raise ConfigError(f"{place} is None: a datetime or a time since 1970 is needed")
    found = [as_second(f"{name}[{index}]", one) for index, one in enumerate(listed)]
    for index, (earlier, later) in enumerate(pairwise(found), 1):
        if later < earlier:
            raise ConfigError(
                f"{name}[{index}] is {listed[index]!r}, before {name}[{index - 1}]: events are "
                "given oldest first"
            )
    return np.array(found, np.int64)
