"""Where new events come from: the store of a server, and tables."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blossomrec.data.growth.append import append_events, append_items
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.log import EventLog
from blossomrec.data.reading.files import found_files
from blossomrec.errors import ConfigError, DataError, NoEventsError
from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.store import EventStore
from blossomrec.updating.options import DailyOptions
from blossomrec.updating.taking import Taken, Taking


class TakenIn(NamedTuple):
    """What one source has brought into the log: its key there, counts by name, and in words."""

    key: str
    counts: dict[str, Any]
    told: str


def take_in(log: Path, folder: Path, options: DailyOptions) -> Iterator[TakenIn]:
    """Append what is new in the sources to the log, one after the other; gives what each brought.

    Args:
        log: folder of the log.
        folder: of the runs.

    Raises:
        ConfigError: a source is not there, or the log could never take it.
        DataError: the store cannot be read, or the log does not take the events.
        RunError: it is another store than before.
    """
    _check_items(log, options.items)
    taking = Taking(folder, log)
    if options.store is None:
        taking.finish()
    else:
        with opened(options.store) as (store, name):
            taken = taking.take(store, name, restored=options.restored)
        if taken is not None:
            yield _from_store(taken)
    for file in [one.path for source in options.events or () for one in found_files(Path(source))]:
        try:
            new = append_events(file, log, AppendOptions())
        except NoEventsError:
            # Of a day on which nothing happened; the tables of other days are taken.
            continue
        if new.is_new:
            counts = {"events": new.events, "table": str(file)}
            yield TakenIn(new.key, counts, f"{new.events:,} new events from {file}")
    if options.items is not None:
        new = append_items(log, options.items)
        if new.is_new:
            counts = {"items": new.items, "table": str(options.items)}
            told = f"the table of items {options.items} is taken, with {new.items:,} new items"
            yield TakenIn(new.key, counts, told)
    if again := taking.forget_again():
        told = f"{again:,} users who were deleted in the store came with tables, and are forgotten"
        yield TakenIn(f"forgotten-{time.time()}", {"forgotten": again}, told)


@contextlib.contextmanager
def opened(where: str) -> Iterator[tuple[EventStore, str]]:
    """A store that must be there, and its name, of a file wherever it is named from."""
    open_store, name = store_opener(where)
    if "://" not in where:
        if not Path(where).is_file():
            raise ConfigError(f"store is {where!r}: there is no such file")
        name = str(Path(where).resolve())
    with contextlib.closing(open_store()) as store:
        try:
            yield store, name
        except store.failures as error:
            raise DataError(f"the store {name} cannot be read: {error}") from error


def _from_store(taken: Taken) -> TakenIn:
    counts = {name: getattr(taken, name) for name in ("events", "forgotten", "left_out")}
    told = f"{taken.events:,} new events from the store"
    if taken.forgotten:
        told += f", {taken.forgotten:,} users forgotten"
    if taken.left_out:
        told += (
            f", {taken.left_out:,} left out, whose ids or times the log cannot have, such as "
            f"{taken.example}"
        )
    return TakenIn(taken.key, {name: count for name, count in counts.items() if count}, told)


def _check_items(log: Path, items: Path | None) -> None:
    """Raise before anything is taken where the table of items never could be."""
    if items is None:
        return
    if not items.is_file():
        raise ConfigError(f"items is {str(items)!r}: there is no such file")
    if EventLog.open(log).item_features is None:
        raise ConfigError(
            f"items is {str(items)!r}, but {log} has no table of items to add to: prepare it with "
            "--items"
        )
