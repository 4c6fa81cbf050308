"""Time cut into periods of equal length."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from blossomrec.data.log import EventLog
from blossomrec.data.units import UNITS, as_second, moment_of
from blossomrec.errors import ConfigError, DataError, shortened
from blossomrec.rolling.options import RollingOptions

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
Time = int | float


@dataclass(frozen=True)
class Period:
    """Events from ``start`` to before ``stop``, times in the unit of the log; numbered from 1."""

    number: int
    start: Time
    stop: Time


def seconds_of(text: str) -> float:
    """Seconds that a length such as ``1d``, ``12h`` or ``2w`` has.

    Raises:
        ConfigError: it is none, or is 0.

    Example:
        >>> seconds_of("1d")
        86400.0
    """
    found = LENGTH.fullmatch(text.strip())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if not seconds:
        raise ConfigError(
            f"period is {shortened(text)}: a number and s, m, h, d or w is needed, such as 1d"
        )
    return seconds


def periods_of(log: EventLog, options: RollingOptions) -> list[Period]:
    """The periods that the options ask for, oldest first.

    Raises:
        DataError: the log has an order and no times, or no event before the first period or from
            its start on.
        ConfigError: a length or a moment is none, or a period is shorter than the unit of times.
    """
    if not log.has_times:
        raise DataError(
            f"{log.folder} has an order, no times: it cannot be cut into periods; prepare it from "
            "a table with times"
        )
    per_second = UNITS[log.time_unit]
    exact = seconds_of(options.period) * per_second
    whole = log.timestamps.dtype.kind == "i"
    length: Time = round(exact) if whole else exact
    if length <= 0:
        raise ConfigError(f"period is {options.period}: it is shorter than the times of the log")
    stop = _end(log, options.until, per_second)
    count = options.periods
    found = [
        Period(number, stop - (count - number + 1) * length, stop - (count - number) * length)
        for number in range(1, count + 1)
    ]
    first, last = (log.summary["time"][name] for name in ("first", "last"))
    if last < found[0].start:
        raise DataError(
            f"{log.folder} has no event in the {count} periods of {options.period}: the first one "
            f"begins at {moment(log, found[0].start)}, and the log ends at {moment(log, last)}"
        )
    if not first < found[0].start:
        raise DataError(
            f"{log.folder} has no event before the first of {count} periods of {options.period}: "
            f"that begins at {moment(log, found[0].start)}, and the log at {moment(log, first)}"
        )
    return found


def _end(log: EventLog, until: str, per_second: int) -> Time:
    if until:
        given = moment_of("until", until)
        return as_second("until", given) * per_second
    last = log.summary["time"]["last"]
    return last + 1 if log.timestamps.dtype.kind == "i" else float(np.nextafter(last, np.inf))


def moment(log: EventLog, time: Time) -> str:
    """A time of the log in ISO 8601, to the second."""
    second = int(time // UNITS[log.time_unit])
    return f"{np.datetime64(second, 's')}Z"
