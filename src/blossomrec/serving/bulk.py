"""Loading whole histories into a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from blossomrec.data.events import describe, read_table
from blossomrec.data.log import LOG_FILE, EventLog
from blossomrec.data.options import ReadOptions, with_given
from blossomrec.data.preparation import order_table
from blossomrec.errors import ConfigError
from blossomrec.serving.store import Event, EventStore, carried_out

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

    Args:
        source: a prepared log, or anything ``read_events`` reads.
        options: of ``ReadOptions``, for a table; events with equal times are ordered as
            ``EventLog.prepare`` orders them.

    Raises:
        DataError: the source is wrong; nothing has been stored then.
        ConfigError: an option is unknown or wrong.
    """
    users = events = kept = 0
    for group in _groups(_histories(source, with_given(ReadOptions, options))):
        part = carried_out(store, lambda group=group: _store_group(store, group))
        users, events, kept = users + part.users, events + part.events, kept + part.kept
    return Imported(users, events, kept)


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


def _histories(
    source: str | Path | pl.DataFrame, options: ReadOptions
) -> Iterator[tuple[str, list[Event]]]:
    if isinstance(source, (str, Path)) and (Path(source) / LOG_FILE).is_file():
        if options != ReadOptions():
            raise ConfigError(f"{source} is a prepared log: how a table is read is no option of it")
        return _of_log(EventLog.open(source))
    table = read_table(source, options).events
    return _of_table(order_table(table, options.ties, describe(source)))


def _of_log(log: EventLog) -> Iterator[tuple[str, list[Event]]]:
    users = log.user_vocabulary.ids(np.arange(log.num_users)).to_list()
    for row, user in enumerate(users):
        times = log.timestamps[log.offsets[row] : log.offsets[row + 1]].tolist()
        yield str(user), _events(log.item_vocabulary.ids(log.history(row)), times)


def _of_table(table: pl.DataFrame) -> Iterator[tuple[str, list[Event]]]:
    if table["timestamp"].dtype == pl.Datetime:
        table = table.with_columns(pl.col("timestamp").cast(pl.Int64))
    for (user,), part in table.partition_by(
        "user_id", as_dict=True, maintain_order=True, include_key=False
    ).items():
        yield str(user), _events(part["item_id"], part["timestamp"].to_list())


def _events(items: pl.Series, times: list[Any]) -> list[Event]:
    # SQLite and others know no unsigned numbers of 64 bits.
    ids = items.cast(pl.String) if items.dtype == pl.UInt64 else items
    return [Event(item, time) for item, time in zip(ids.to_list(), times, strict=True)]
