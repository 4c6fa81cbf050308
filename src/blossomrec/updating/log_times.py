"""Times of a store as a log has them."""

from __future__ import annotations

from blossomrec.data.log import EventLog
from blossomrec.data.units import EPOCH_SECONDS, ORDER, UNITS, Time


class LogTimes:
    """Brings times in the unit of a store to unit and type of a log's.

    Args:
        unit: of the store, one of ``UNITS``; None where its times are no times since 1970.
    """

    def __init__(self, log: EventLog, unit: str | None):
        self._whole = log.timestamps.dtype.kind == "i"
        self._to = self._from = 1
        self._low = self._high = None
        if log.time_unit != ORDER:
            self._to = UNITS[log.time_unit]
            self._from = self._to if unit is None else UNITS[unit]
            self._low, self._high = (limit * self._to for limit in EPOCH_SECONDS)

    def of(self, time: Time) -> Time:
        """A time of the store; what is under the log's unit is cut off."""
        if self._whole:
            return int(time * self._to // self._from)
        return float(time * self._to / self._from)

    def takes(self, time: Time) -> bool:
        """Whether the log takes a time that was brought to its unit."""
        return self._low is None or self._high is None or self._low <= time < self._high
