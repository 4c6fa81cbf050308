"""A table to append, brought to what a log knows: its types of ids, its times, its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.fields import EventFields
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.growth.segment import OPTIONAL
from blossomrec.data.log import EventLog
from blossomrec.data.preparing.id_column import KnownIds
from blossomrec.data.preparing.parts import EventParts
from blossomrec.data.preparing.reading import ReadEvents
from blossomrec.data.preparing.sorting import SortedEvents
from blossomrec.data.reading.columns import Column, Refused
from blossomrec.data.reading.kinds import MAX_KINDS, MAX_NAMES
from blossomrec.data.reading.options import PrepareOptions, ReadOptions
from blossomrec.data.reading.tables import describe
from blossomrec.data.source_keys import content_key
from blossomrec.data.units import EPOCH_SECONDS, ORDER, UNITS
from blossomrec.errors import DataError

_LARGEST_EXACT = 2**53


class NewEvents:
    """Events to append, on disk; memory is that of a part of them, and of their users and items.

    Args:
        source: as of ``EventLog.append``.
        log: without its segments.
        folder: a new one, that they are kept in.

    Attributes:
        source: what errors call it.
        users, items: ids that are in it, each once, sorted, in the log's type.
        fields: those of the log, and names that are new.
        key: a digest of all that.

    Raises:
        DataError: it does not fit the log; the message names table, column, row and value.
    """

    def __init__(self, source: Any, log: EventLog, options: AppendOptions, folder: Path):
        folder.mkdir()
        self.source, reading, self._folder = describe(source), options.reading(log), folder
        read = _KnownEvents(source, log, options, folder / "read")
        self.users, self.items = read.users.series(), read.items.series()
        self._lengths, self._own = read.lengths, read.fields
        ids = read.users, read.items
        self._events = SortedEvents(read, folder / "sorted", hashed=True)
        self.key = content_key(ids, self._events.digests, self._own)
        ties = log.summary.get("ties") or {}
        how = "shuffle" if ties.get("shuffled") else reading.ties
        self._events.order_ties(how, self.source)
        self.fields = _grown(log.fields, self._own, self.source)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._events.parts)

    def by_rows(self, users: np.ndarray, items: np.ndarray) -> EventsByRows:
        """The events in rows of the log, int32, of the users and items; they are no more here."""
        order = np.argsort(users)
        places = np.empty_like(users)
        places[order] = np.arange(len(users), dtype=users.dtype)
        parts = EventParts(self._folder / "by-rows", self._lengths[order])
        with self._events:
            for part in self._events.parts:
                part = _translated(part, self._own, self.fields)
                parts.add(part.renumbered(places, items))
        parts.replace(EventArrays.sorted)
        return EventsByRows(parts, users[order])


class EventsByRows:
    """Events by row of the user, then time: parts of all events of neighbouring users, on disk."""

    def __init__(self, parts: EventParts, users: np.ndarray):
        self._parts, self._users = parts, users

    def __iter__(self) -> Iterator[EventArrays]:
        for part in self._parts:
            yield replace(part, users=self._users[part.users])

    def __len__(self) -> int:
        """Events that there are."""
        return len(self._parts)

    def close(self) -> None:
        """Close the files."""
        self._parts.close()


def no_new_events(log: EventLog) -> EventArrays:
    """No events, beside a table of something else."""
    columns = {name: getattr(log, name) for name in OPTIONAL}
    columns |= {"items": log.items, "times": log.timestamps}
    empty = {name: np.asarray(one[:0]) for name, one in columns.items() if one is not None}
    return EventArrays(np.empty(0, np.int32), **empty)


class _KnownEvents(ReadEvents):
    """The events with ids and times in the log's types."""

    def __init__(self, source: Any, log: EventLog, options: AppendOptions, folder: Path):
        self._log, self._source, self._reading = log, describe(source), options.reading(log)
        known = {
            "user_id": KnownIds(log.user_vocabulary.dtype, "a user"),
            "item_id": KnownIds(log.item_vocabulary.dtype, "an item"),
        }
        given: dict[str, Any] = {name: options.column(name, log) for name in ("weight", "kind")}
        reading = {
            entry.name: getattr(self._reading, entry.name)
            for entry in dataclasses.fields(ReadOptions)
        }
        context = {one.name: one.kind for one in log.fields.context}
        super().__init__(
            *(source, PrepareOptions(**reading, **given), context, folder),
            known=known,
            sparse=True,
        )

    def batches(self) -> Iterator[EventArrays]:
        column = Column(
            self._source, self._reading.timestamp, pl.Series([], dtype=pl.Int64), files=self.files
        )
        times, first = _KnownTimes(self._log, self.times.datetimes), 0
        for events in super().batches():
            rows = range(first, first + len(events.times))
            values = pl.Series(events.times)
            found = times.of(replace(column, values=values, rows=rows))
            yield replace(events, times=found)
            first = rows.stop
        times.refuse()


class _KnownTimes:
    """Times as a log has them, int64 or float64.

    Args:
        datetimes: whether they were datetimes, as microseconds.
    """

    def __init__(self, log: EventLog, datetimes: bool):
        self._unit, self._dtype = log.time_unit, log.timestamps.dtype
        given = log.options.get("time_unit", "auto")
        self._misfits = datetimes and self._unit != "microseconds" and given != ORDER
        self._are_told = not datetimes and self._unit != ORDER and given == "auto"
        self._outside, self._inexact = Refused(), Refused()

    def of(self, column: Column) -> np.ndarray:
        """Times of neighbouring rows; what is refused is told by :meth:`refuse`."""
        values = column.values
        if self._misfits:
            shown = column.with_values(values.cast(pl.Datetime("us")))
            shown.refuse(
                pl.Series([True]), f"is a datetime: the times of the log are numbers, {self._unit}"
            )
        if self._are_told:
            low, high = (limit * UNITS[self._unit] for limit in EPOCH_SECONDS)
            self._outside.add(column, (values < low) | (values >= high))
        if self._dtype == np.int64 and values.dtype == pl.Float64:
            self._inexact.add(column, values != values.floor())
        if self._dtype == np.float64 and values.dtype == pl.Int64:
            self._inexact.add(column, values.abs() >= _LARGEST_EXACT)
        return values.to_numpy().astype(self._dtype, copy=False)

    def refuse(self) -> None:
        """Raise DataError for the first time that is none of the log's."""
        self._outside.refuse(f"is not a time in {self._unit} since 1970, as those of the log are")
        self._inexact.refuse(
            "is not whole, as the times of the log are"
            if self._dtype == np.int64
            else "is too large for a time: those of the log are floats"
        )


def as_ids_of(column: Column, dtype: str, what: str) -> pl.Series:
    """Ids in the type of a vocabulary; text stands for an integer where it is written as one.

    Raises:
        DataError: one cannot be.
    """
    values, known = column.values, KnownIds(dtype, what)
    if str(values.dtype) == dtype:
        return values
    ids = known.cast(values)
    column.refuse(known.differ(values, ids), known.why)
    return ids


def _grown(known: EventFields, others: EventFields, source: str) -> EventFields:
    """The fields of a log with what others have more; their numbers stay."""
    kinds = _more(known.kinds, others.kinds)
    if len(kinds) > MAX_KINDS:
        raise DataError(f"{source} brings the kinds to {len(kinds):,}: up to {MAX_KINDS:,} may be")
    columns = []
    for one, other in zip(known.context, others.context, strict=True):
        names = _more(one.names, other.names)
        if len(names) > MAX_NAMES:
            raise DataError(
                f"{source}, column {one.name!r}, brings its categories to {len(names):,}: up to "
                f"{MAX_NAMES:,} may be"
            )
        columns.append(replace(one, names=names))
    return EventFields(kinds, tuple(columns))


def _more(known: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return known + tuple(sorted(set(others) - set(known)))


def _translated(events: EventArrays, own: EventFields, fields: EventFields) -> EventArrays:
    """Events with kinds and context in the numbers of ``fields`` in place of their own."""
    kind_numbers, columns = fields.translated(own)
    kinds, context = events.kinds, events.context
    if kinds is not None:
        kinds = kind_numbers[kinds].astype(np.int32)
    if context is not None:
        context = context.copy()
        for place, numbers in enumerate(columns):
            if numbers is not None:
                known = ~np.isnan(context[:, place])
                context[known, place] = numbers[context[known, place].astype(np.int64)]
    return replace(events, kinds=kinds, context=context)
