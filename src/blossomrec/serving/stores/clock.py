"""What time it is for a store of events, and in which unit."""

from __future__ import annotations

from dataclasses import dataclass

from blossomrec.data.units import UNITS, Time, unit_of
from blossomrec.serving.refusals import Refusal


@dataclass
class Clock:
    """What time it is, in the unit of a store's events.

    Attributes:
        now: seconds since 1970.
        unit: one of ``UNITS``; None while no event has shown it, and is then that of the first one
            that looks like a time since 1970.
        ahead: seconds after now that an event may have as its time; None for any time.
    """

    now: Time
    unit: str | None
    ahead: float | None = None

    def time(self) -> Time:
        """Now, as the time of an event."""
        return self._in_unit(self.now)

    def check(self, index: int, timestamp: Time) -> None:
        """Learn the unit from the time of an event, and raise Refusal if that is too far ahead."""
        self.unit = self.unit or unit_of(timestamp)
        if self.ahead is None or self.unit is None:
            return
        if timestamp <= self._in_unit(self.now + self.ahead):
            return
        field = f"events[{index}].timestamp"
        raise Refusal(
            422,
            "in_the_future",
            f"{field} is {timestamp}: it is {self.time()} now, and events may be at most "
            f"{self.ahead:g} seconds ahead{other_unit(timestamp, self.unit)}",
            field=field,
            value=timestamp,
        )

    def _in_unit(self, seconds: Time) -> int:
        return int(seconds * UNITS[self.unit or "seconds"])


def other_unit(timestamp: Time, unit: str | None) -> str:
    """What a message says of a time that looks like one in another unit than the store's."""
    seems = unit_of(timestamp)
    if unit is None or seems in (None, unit):
        return ""
    return f"; times are in {unit} here, and this one looks like {seems}"
