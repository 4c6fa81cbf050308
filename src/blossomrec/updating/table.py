"""New events of a store as a table that a log takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import polars as pl

from blossomrec.data.fields import as_name
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.log import EventLog
from blossomrec.updating.log_times import LogTimes
from blossomrec.updating.store_events import NewEvents


class Table(NamedTuple):
    """Events with the columns of a log, and those that it cannot take.

    Attributes:
        left_out: how many events have an id or a time of another sort than the log's.
        example: of one of them, in words; None without any.
    """

    events: pl.DataFrame
    left_out: int
    example: str | None


def as_table(new: NewEvents, log: EventLog, unit: str | None) -> Table:
    """The events in the log's columns, ids and times as it has them.

    What the log has no column for is left away. Where it has weights, these events weigh 1.

    Args:
        unit: of the store's times.
    """
    options, times = AppendOptions(), LogTimes(log, unit)
    reading = options.reading(log)
    users, user_fits = _ids(new.users, log.user_vocabulary.dtype)
    items, item_fits = _ids(new.items, log.item_vocabulary.dtype)
    found = list(map(times.of, new.times))
    time_fits = pl.Series(list(map(times.takes, found)), dtype=pl.Boolean)
    number = pl.Int64 if log.timestamps.dtype.kind == "i" else pl.Float64
    columns: dict[str, pl.Series] = {
        reading.user: users,
        reading.item: items,
        reading.timestamp: pl.Series(found, dtype=number),
    }
    if log.weights is not None:
        columns[options.column("weight", log)] = pl.repeat(1.0, len(users), eager=True)
    if log.kinds is not None:
        columns[options.column("kind", log)] = pl.Series(new.kinds, dtype=pl.String)
    for each in log.fields.context:
        values = [None if one is None else one.get(each.name) for one in new.contexts]
        columns[each.name] = _context(values, each.kind)
    fits = user_fits & item_fits & time_fits
    table = pl.DataFrame({name: each.alias(name) for name, each in columns.items()})
    example = None if fits.all() else _example(new, (fits.not_()).arg_true()[0])
    return Table(table.filter(fits), len(fits) - int(fits.sum()), example)


def _ids(given: list[Any], dtype: str) -> tuple[pl.Series, pl.Series]:
    """Ids in the log's type, and which of them can be that."""
    texts = pl.Series([str(one) for one in given], dtype=pl.String)
    ids = texts.cast(getattr(pl, dtype), strict=False)
    return ids, (ids.cast(pl.String) == texts).fill_null(False)


def _context(values: list[Any], kind: str) -> pl.Series:
    """Values of a column, missing where they are not what it has."""
    if kind == "number":
        numbers = [one if isinstance(one, (int, float)) else None for one in values]
        return pl.Series(numbers, dtype=pl.Float64, strict=False)
    return pl.Series([None if one is None else as_name(one) for one in values], dtype=pl.String)


def _example(new: NewEvents, place: int) -> str:
    return f"user {new.users[place]!r}, item {new.items[place]!r}, time {new.times[place]!r}"
