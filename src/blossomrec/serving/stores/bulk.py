"""Loading whole histories into a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from blossomrec.data.fields import EventFields
from blossomrec.data.log import LOG_FILE, EventLog
from blossomrec.data.preparation import context_columns
from blossomrec.data.preparing.whole_table import order_table
from blossomrec.data.reading.options import EventOptions, with_given
from blossomrec.data.reading.tables import EventTable, describe, read_table
from blossomrec.data.units import unit_of
from blossomrec.errors import ConfigError, DataError
from blossomrec.serving.given import check_text
from blossomrec.serving.refusals import shown
from blossomrec.serving.stores.store import Event, EventStore, carried_out

# Events in one transaction: others who write have to wait for it.
TOGETHER = 20_000


class Imported(NamedTuple):
    """What came of an import: users and events that are new, users who were there before."""

    users: int
    events: int
    kept: int


def import_events(source: str | Path | pl.DataFrame, store: EventStore, **options: Any) -> Imported:
    """Store the histories of all users who have no events yet.

    Users with events are left as they are, so that an import that was stopped can be run again.
    A user who was deleted has none, and is stored again if the source still holds the events.

    Args:
        source: a prepared log, or anything ``read_table`` reads.
        options: of ``EventOptions``, for a table; events with equal times are ordered as
            ``EventLog.prepare`` orders them.

    Raises:
        DataError: the source is wrong; nothing has been stored then.
        ConfigError: an option is unknown or wrong.
    """
    read = _read(source, with_given(EventOptions, options))
    _check_users(read)
    _check_unit(read, store)
    users = events = kept = 0
    for group in _groups(read.histories):
        part = carried_out(store, lambda group=group: _store_group(store, group))
        users, events, kept = users + part.users, events + part.events, kept + part.kept
    return Imported(users, events, kept)


class _Source(NamedTuple):
    """What is to be imported: its name, its users and where they stand, its largest time."""

    name: str
    users: list[str]
    rows: Callable[[str], str]
    latest: Any
    histories: Iterator[tuple[str, list[Event]]]


def _check_users(read: _Source) -> None:
    """Raise DataError for an id that no request could name."""
    for user in read.users:
        try:
            check_text(user)
        except ValueError as error:
            raise DataError(f"{read.name}, {read.rows(user)}: {shown(user)}: {error}") from error


def _check_unit(read: _Source, store: EventStore) -> None:
    """Raise DataError where the times would be compared with those of another unit."""
    found, unit = unit_of(read.latest), store.unit()
    if found and unit and found != unit:
        raise DataError(
            f"the times of {read.name} are in {found}, such as {read.latest}, those of the store "
            f"in {unit}: give a column of times in {unit}"
        )


def _store_group(store: EventStore, group: list[tuple[str, list[Event]]]) -> Imported:
    numbers = store.numbers([user for user, _ in group])
    new = [one for one, number in zip(group, numbers, strict=True) if not number]
    for user, history in new:
        store.append(user, history, 0)
    return Imported(len(new), sum(len(history) for _, history in new), len(group) - len(new))


def _groups(
    histories: Iterator[tuple[str, list[Event]]],
) -> Iterator[list[tuple[str, list[Event]]]]:
    group, size = [], 0
    for user, history in histories:
        group.append((user, history))
        size += len(history)
        if size >= TOGETHER:
            yield group
            group, size = [], 0
    yield group


def _read(source: str | Path | pl.DataFrame, options: EventOptions) -> _Source:
    if isinstance(source, (str, Path)) and (Path(source) / LOG_FILE).is_file():
        if options != EventOptions():
            raise ConfigError(f"{source} is a prepared log: how a table is read is no option of it")
        return _of_log(EventLog.open(source))
    columns = context_columns(options)
    table = read_table(source, options, kind=options.kind, context=columns)
    return _of_table(source, table, options)


def _of_log(log: EventLog) -> _Source:
    users = [str(user) for user in log.user_vocabulary.ids(np.arange(log.num_users)).to_list()]

    def histories() -> Iterator[tuple[str, list[Event]]]:
        for row, user in enumerate(users):
            history = log.history(row)
            part = slice(log.offsets[row], log.offsets[row + 1])
            items, times = log.item_vocabulary.ids(history.items), log.timestamps[part].tolist()
            yield user, _events(items, times, log.fields, history.kinds, history.context)

    latest = log.timestamps.max().item() if len(log.timestamps) else 0

    def row(user: str) -> str:
        return f"user {users.index(user) + 1}"

    return _Source(str(log.folder), users, row, latest, histories())


def _of_table(source: Any, table: EventTable, options: EventOptions) -> _Source:
    if table.events["timestamp"].dtype == pl.Datetime:
        whole = table.events.with_columns(pl.col("timestamp").cast(pl.Int64))
        table = replace(table, events=whole)
    ids = table.events["user_id"].cast(pl.String)
    # Rows are told as they stand in the table, before it is put in order.
    ordered, fields, arrays = order_table(table, options.ties, describe(source))

    def histories() -> Iterator[tuple[str, list[Event]]]:
        start = 0
        for (user,), part in ordered.partition_by(
            "user_id", as_dict=True, maintain_order=True, include_key=False
        ).items():
            told = [
                None if each is None else each[start : start + part.height]
                for each in (arrays.kinds, arrays.context)
            ]
            yield str(user), _events(part["item_id"], part["timestamp"].to_list(), fields, *told)
            start += part.height

    def row(user: str) -> str:
        first = (ids == user).arg_max()
        return f"column {options.user!r}, row {0 if first is None else first + 1}"

    users = ids.unique(maintain_order=True).to_list()
    return _Source(describe(source), users, row, table.events["timestamp"].max(), histories())


def _events(
    items: pl.Series,
    times: list[Any],
    fields: EventFields,
    kinds: np.ndarray | None,
    context: np.ndarray | None,
) -> list[Event]:
    # SQLite and others know no unsigned numbers of 64 bits.
    ids = items.cast(pl.String) if items.dtype == pl.UInt64 else items
    none = [None] * len(times)
    names = none if kinds is None else [(None, *fields.kinds)[number] for number in kinds.tolist()]
    values = none if context is None else list(map(fields.values, context))
    parts = zip(ids.to_list(), times, none, names, values, strict=True)
    return list(itertools.starmap(Event, parts))
