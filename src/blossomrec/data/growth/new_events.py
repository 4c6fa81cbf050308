"""A table to append, brought to what a log knows: its types of ids, its times, its numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays, encode_fields, order_ties
from blossomrec.data.fields import EventFields
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.growth.segment import OPTIONAL
from blossomrec.data.id_arrays import ids_of
from blossomrec.data.identity import array_digests
from blossomrec.data.log import EventLog
from blossomrec.data.preparation import encode_events
from blossomrec.data.reading.columns import Column
from blossomrec.data.reading.kinds import MAX_KINDS, MAX_NAMES
from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.reading.tables import EventTable, describe, read_table
from blossomrec.data.source_keys import content_key
from blossomrec.data.units import EPOCH_SECONDS, ORDER, UNITS
from blossomrec.errors import DataError

_LARGEST_EXACT = 2**53


class NewEvents:
    """Events to append.

    Attributes:
        users, items: ids that are in it, each once, sorted, in the log's type.
        events: by user, then time, with positions in those in place of rows, and kinds and context
            in the numbers of ``fields``.
        fields: those of the log, and names that are new.
        key: a digest of all that.
    """

    def __init__(self, source: Any, log: EventLog, options: AppendOptions):
        """Read and check a table.

        Raises:
            DataError: it does not fit the log; the message names table, column, row and value.
        """
        self.source, reading = describe(source), options.reading(log)
        has_kinds = log.kinds is not None
        table = read_table(
            source,
            reading,
            None if log.weights is None else options.column("weight", log),
            options.column("kind", log) if has_kinds else None,
            {one.name: one.kind for one in log.fields.context},
            sparse=True,
        )
        events = _as_known(table, self.source, reading, log)
        self.users, self.items, arrays = encode_events(events)
        fields, kinds, context = encode_fields(events["kind"] if has_kinds else None, table.context)
        arrays = replace(arrays, kinds=kinds, context=context).sorted()
        self.key = content_key(
            (ids_of(self.users), ids_of(self.items)), array_digests(**vars(arrays)), fields
        )
        ties = log.summary.get("ties") or {}
        how = "shuffle" if ties.get("shuffled") else reading.ties
        arrays = order_ties(arrays, how, self.source)
        self.fields = _grown(log.fields, fields, self.source)
        self.events = _translated(arrays, fields, self.fields)

    @classmethod
    def none(cls, source: str, log: EventLog) -> NewEvents:
        """No events, beside a table of something else."""
        self = cls.__new__(cls)
        self.source, self.key, self.fields = source, "", log.fields
        self.users, self.items = (
            pl.Series("id", dtype=getattr(pl, one.dtype))
            for one in (log.user_vocabulary, log.item_vocabulary)
        )
        columns = {name: getattr(log, name) for name in OPTIONAL}
        columns |= {"items": log.items, "times": log.timestamps}
        empty = {name: np.asarray(one[:0]) for name, one in columns.items() if one is not None}
        self.events = EventArrays(np.empty(0, np.int32), **empty)
        return self


def _as_known(table: EventTable, source: str, options: ReadOptions, log: EventLog) -> pl.DataFrame:
    """The events with ids and times in the log's types."""
    events = table.events
    names = {"user_id": options.user, "item_id": options.item, "timestamp": options.timestamp}
    columns = {
        role: Column(source, name, events[role], files=table.files) for role, name in names.items()
    }
    return events.with_columns(
        as_ids_of(columns["user_id"], log.user_vocabulary.dtype, "a user").alias("user_id"),
        as_ids_of(columns["item_id"], log.item_vocabulary.dtype, "an item").alias("item_id"),
        _as_times_of(columns["timestamp"], log).alias("timestamp"),
    )


def as_ids_of(column: Column, dtype: str, what: str) -> pl.Series:
    """Ids in the type of a vocabulary; text stands for an integer where it is written as one.

    Raises:
        DataError: one cannot be.
    """
    values = column.values
    if str(values.dtype) == dtype:
        return values
    ids = values.cast(getattr(pl, dtype), strict=False)
    kind = "text" if dtype == "String" else "integers"
    wrong = ids.is_null() | (ids.cast(pl.String) != values.cast(pl.String))
    column.refuse(wrong, f"is no id of {what}: those of the log are {kind} ({dtype})")
    return ids


def _as_times_of(column: Column, log: EventLog) -> pl.Series:
    """Times as the log has them, Int64 or Float64."""
    values = column.values
    unit, given = log.time_unit, log.options.get("time_unit", "auto")
    if values.dtype == pl.Datetime:
        if unit != "microseconds" and given != ORDER:
            column.refuse(
                pl.Series([True]), f"is a datetime: the times of the log are numbers, {unit}"
            )
        values = values.to_physical()
    elif unit != ORDER and given == "auto":
        low, high = (limit * UNITS[unit] for limit in EPOCH_SECONDS)
        column.refuse(
            (values < low) | (values >= high),
            f"is not a time in {unit} since 1970, as those of the log are",
        )
    return _as_type_of(column, values, str(log.timestamps.dtype))


def _as_type_of(column: Column, values: pl.Series, dtype: str) -> pl.Series:
    if dtype == "int64" and values.dtype == pl.Float64:
        column.refuse(values != values.floor(), "is not whole, as the times of the log are")
        return values.cast(pl.Int64)
    if dtype == "float64" and values.dtype == pl.Int64:
        column.refuse(
            values.abs() >= _LARGEST_EXACT,
            "is too large for a time: those of the log are floats",
        )
        return values.cast(pl.Float64)
    return values


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
