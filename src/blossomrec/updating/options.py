"""What an update can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blossomrec.config import check, option
from blossomrec.errors import ConfigError

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
Paths = Annotated[list[Path], Parameter(consume_multiple=True)]


@dataclass(frozen=True)
class DailyOptions:
    """Where new events come from, what training may take, and when a new run is taken."""

    store: str | None = option(
        None, "the store of the server, whose new events are taken: a file or a URL"
    )
    events: Paths | None = option(
        None,
        "tables of new events: files, folders or patterns; each file is taken once, by its content",
    )
    items: Path | None = option(
        None, "table of items with the columns of the log's own, as of append"
    )
    minutes: float = option(
        20.0,
        "minutes after which the training of an update ends, 0 for no limit; the first run is "
        "trained as its configuration says",
        low=0,
    )
    tokens_per_batch: int = option(
        1_024,
        "most events in a batch of an update: what is new since the last one is little, and needs "
        "some steps",
        low=1,
    )
    tolerance: float = option(
        0.01,
        "share of the NDCG@10 of the run in use that a new one may lack and be taken all the same",
        low=0,
        high=1,
    )
    cases: int = option(10_000, "most users on whose newest events both are measured", low=1)
    keep: int = option(7, "runs that are kept; that in use and the one before it always are", low=1)
    wait: float = option(
        600.0,
        "seconds in which a server must answer with a new run, else the old one is back",
        low=0,
    )
    restored: bool = option(
        False,
        "the store is another one than before, or an older copy: match it with the log, and take "
        "nobody who is missing there for deleted",
    )
    every: str | None = option(
        None, "go on, with an update every so often: 1d, 6h, 30m; SIGTERM ends it"
    )

    def checked(self) -> DailyOptions:
        """These options; ConfigError where one is out of bounds."""
        numbers = {name: getattr(self, name) for name in ("minutes", "tolerance", "wait")}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{name} is {value!r}: a number is needed")
        check(self)
        if self.every is not None:
            seconds_of(self.every)
            if self.restored:
                raise ConfigError("restored is for one update: give it without every")
        return self


def seconds_of(every: str) -> int:
    """Seconds of a text such as "1d".

    Raises:
        ConfigError: it is none.

    >>> seconds_of("1d"), seconds_of("90s")
    (86400, 90)
    """
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", every.strip())
    if found is None:
        raise ConfigError(f"every is {every!r}: give a number and s, m, h or d, such as 1d or 6h")
    return int(found[1]) * SECONDS[found[2]]
