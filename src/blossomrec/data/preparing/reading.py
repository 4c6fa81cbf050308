"""A table of events read once, in batches, and kept on disk as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.fields import ContextField, EventFields
from blossomrec.data.preparing.columns import (
    BatchColumn,
    NameColumn,
    NumberColumn,
    TimeColumn,
    context_column,
)
from blossomrec.data.preparing.id_column import IdColumn, KnownIds
from blossomrec.data.reading.columns import Column, read_weights
from blossomrec.data.reading.declared import with_declared
from blossomrec.data.reading.kinds import read_event_kinds
from blossomrec.data.reading.options import PrepareOptions
from blossomrec.data.reading.tables import (
    CONTEXT,
    SourceBatches,
    column_roles,
    describe,
    no_events,
)
from blossomrec.files import remove


class ReadEvents:
    """A checked table of E events on disk, in its order.

    Memory is that of a batch, of the distinct kinds and categories, and of 20 bytes an id.

    Args:
        source: as of ``read_table``.
        options: the columns and how they are read.
        context: of the columns of the context, "category", "number" or None, by name.
        folder: a new one, that the events are kept in.
        known: the types that ids of "user_id" and "item_id" are brought to; those that they have
            without it.
        sparse: a column of kinds or of the context may lack all of its values.

    Attributes:
        users, items: ids, sorted, memory-mapped; only while the folder is there.
        lengths, item_counts: events of each user and item, int64.
        times: the column of the times.
        fields: names of the kinds and the context, sorted; numbers are not measured yet.
        num_events: E.
        files: of the source, with the rows of each.
        lines: of text files; None of others.

    Raises:
        DataError: as of ``read_table``.
    """

    def __init__(
        self,
        source: Any,
        options: PrepareOptions,
        context: Mapping[str, str | None],
        folder: Path,
        *,
        known: Mapping[str, KnownIds] | None = None,
        sparse: bool = False,
    ):
        self._folder, self._known, self._sparse = folder, known or {}, sparse
        self._normalize = options.normalize_ids
        self._columns = dict[str, BatchColumn]()
        self.num_events = self._batches = 0
        names = column_roles(options, options.weight, options.kind, context)
        batches = SourceBatches(source, names, options)
        self._kinds_of_context = with_declared(context, batches.declared)
        folder.mkdir()
        for table in batches:
            if table.height:
                self._add(table, names, batches, describe(source))
        if not self.num_events:
            raise no_events(source)
        for role in names:
            self._columns[role].close()
        self.lines, self.files = batches.lines, tuple(batches.files)
        self._take_columns(names)

    def batches(self) -> Iterator[EventArrays]:
        """The events, users and items as places in their ids, kinds and categories as numbers of
        their names."""
        for number in range(self._batches):
            table = pl.scan_ipc(self._file(number), glob=False).collect()
            found = {
                role: self._columns[role].decoded(table[role], number) for role in table.columns
            }
            around = [_as_context(found[role]) for role in found if role.startswith(CONTEXT)]
            yield EventArrays(
                found["user_id"],
                found["item_id"],
                found["timestamp"],
                found.get("weight"),
                found.get("kind"),
                np.stack(around, 1) if around else None,
            )

    def remove(self) -> None:
        """Remove the events from the disk."""
        remove(self._folder)

    def _add(
        self, table: pl.DataFrame, names: Mapping[str, str], source: SourceBatches, told: str
    ) -> None:
        numbers = {}
        rows = range(self.num_events, self.num_events + table.height)
        files = tuple(source.files)
        for role, name in names.items():
            values = table.drop_in_place(role)
            column = Column(told, name, values, source.textual, files, rows, whole=source.whole)
            if role not in self._columns:
                self._columns[role] = self._column(role, column)
            numbers[role] = self._columns[role].add(column)
        pl.DataFrame(numbers).write_ipc(self._file(self._batches))
        self._batches += 1
        self.num_events = rows.stop

    def _column(self, role: str, first: Column) -> BatchColumn:
        if role in ("user_id", "item_id"):
            return IdColumn(self._normalize, self._folder / role, self._known.get(role))
        if role == "timestamp":
            return TimeColumn()
        if role == "weight":
            return NumberColumn(read_weights)
        if role == "kind":
            return NameColumn(lambda each: read_event_kinds(each, sparse=self._sparse))
        kind = self._kinds_of_context[first.name]
        return context_column(first, kind, sparse=self._sparse)

    def _take_columns(self, names: Mapping[str, str]) -> None:
        users, items = self._columns["user_id"], self._columns["item_id"]
        times, kinds = self._columns["timestamp"], self._columns.get("kind")
        assert isinstance(users, IdColumn) and isinstance(items, IdColumn)
        assert isinstance(times, TimeColumn)
        self.users, self.items, self.times = users.ids, items.ids, times
        self.lengths, self.item_counts = users.counts, items.counts
        known = kinds.names if isinstance(kinds, NameColumn) else None
        context = tuple(
            _field(str(name), self._columns[role])
            for role, name in names.items()
            if role.startswith(CONTEXT)
        )
        self.fields = EventFields(known or (), context)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.arrow"


def _field(name: str, column: BatchColumn) -> ContextField:
    names = column.names if isinstance(column, NameColumn) else None
    if names is None:
        return ContextField(name, "number")
    return ContextField(name, "category", names)


def _as_context(values: np.ndarray) -> np.ndarray:
    """A column of the context, float32: numbers of names, 0 for none, are integers."""
    if values.dtype == np.float32:
        return values
    return np.where(values > 0, values, np.nan).astype(np.float32)
