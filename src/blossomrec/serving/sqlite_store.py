"""Events in one SQLite file, with a write-ahead log."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blossomrec.errors import DataError
from blossomrec.serving.refusals import Refusal, shown, unavailable
from blossomrec.serving.store import Appended, Event, ItemId, Profile, Tail, Time

FORMAT = 1
APPLICATION = 0x626C6F73  # "blos"
BUSY_SECONDS = 20.0
# AUTOINCREMENT: the number of a deleted user is never given again. A column without a type keeps
# integers and text as they are.
SCHEMA = """
CREATE TABLE users (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    length INTEGER NOT NULL,
    last NOT NULL
);
CREATE TABLE events (
    user INTEGER NOT NULL,
    position INTEGER NOT NULL,
    item NOT NULL,
    timestamp NOT NULL,
    key TEXT,
    PRIMARY KEY (user, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX event_keys ON events (user, key) WHERE key IS NOT NULL;
CREATE TABLE items_off (item NOT NULL PRIMARY KEY) WITHOUT ROWID;
"""


class SQLiteStore:
    """An :class:`EventStore` in the file ``path``, which is made where it is missing.

    A transaction that has ended survives the end of the process and of the machine
    (``synchronous = FULL``); deleted content is overwritten (``secure_delete``). Several processes
    may use a file at the same time, on one machine.

    Raises:
        DataError: the file cannot be opened or is something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            # What people did is nobody else's business on the machine.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{self.path} cannot be used as a store of events: {error}") from error

    def _prepare(self) -> None:
        run = self._database.execute
        run("PRAGMA synchronous = FULL")
        run("PRAGMA secure_delete = ON")
        with self.transaction():
            if run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in SCHEMA.split(";"):
                    run(statement)
                run(f"PRAGMA application_id = {APPLICATION}")
                run(f"PRAGMA user_version = {FORMAT}")
            found, application = self._number("user_version"), self._number("application_id")
        if application != APPLICATION:
            raise DataError(f"{self.path} is an SQLite file, but not a store of events")
        if found != FORMAT:
            raise DataError(f"{self.path} has format {found}: this version reads format {FORMAT}")
        # Once it is known to be ours: this is written into the file.
        run("PRAGMA journal_mode = WAL")

    def _number(self, pragma: str) -> int:
        return self._database.execute(f"PRAGMA {pragma}").fetchone()[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def attempt(self) -> Iterator[None]:
        self._database.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            # After some errors, such as a full disk, SQLite has undone the whole transaction.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK TO attempt")
            raise
        finally:
            if self._database.in_transaction:
                self._database.execute("RELEASE attempt")

    def append(self, user: str, events: Sequence[Event], now: Time) -> Appended:
        number, length, last = self._user(user) or (None, 0, None)
        new: list[tuple[ItemId, Time, str | None]] = []
        keys: dict[str, tuple[ItemId, Time]] = {}
        for index, event in enumerate(events):
            if event.key is not None:
                known = keys.get(event.key) or self._keyed(number, event.key)
                if known is not None:
                    _check_repeat(index, event, known)
                    continue
            last = _time(index, event, last, now)
            new.append((event.item, last, event.key))
            if event.key is not None:
                keys[event.key] = (event.item, last)
        if new:
            number = self._grown(user, number, length + len(new), last)
            rows = [(number, place, *one) for place, one in enumerate(new, length)]
            self._database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
        return Appended(len(new), len(events) - len(new), length + len(new))

    def _user(self, user: str) -> tuple[int, int, Any] | None:
        found = self._database.execute(
            "SELECT number, length, last FROM users WHERE id = ?", (user,)
        )
        return found.fetchone()

    def _keyed(self, number: int | None, key: str) -> tuple[ItemId, Time] | None:
        if number is None:
            return None
        found = self._database.execute(
            "SELECT item, timestamp FROM events WHERE user = ? AND key = ?", (number, key)
        )
        return found.fetchone()

    def _grown(self, user: str, number: int | None, length: int, last: Time | None) -> int:
        """Write how long a user's history is and when it ends; gives the user's number."""
        if number is None:
            made = self._database.execute(
                "INSERT INTO users (id, length, last) VALUES (?, ?, ?)", (user, length, last)
            )
            assert made.lastrowid is not None
            return made.lastrowid
        self._database.execute(
            "UPDATE users SET length = ?, last = ? WHERE number = ?", (length, last, number)
        )
        return number

    def tail(self, user: str, number: int, start: int, most: int) -> Tail | None:
        found = self._user(user)
        if found is None:
            return None
        if found[0] != number or start > found[1]:
            start = 0
        if start == found[1]:
            return Tail(found[0], start, found[1], [])
        rows = self._database.execute(
            "SELECT item FROM events WHERE user = ? AND position >= ? AND position < ?"
            " ORDER BY position",
            (found[0], start, min(start + most, found[1])),
        )
        return Tail(found[0], start, found[1], [item for (item,) in rows.fetchall()])

    def profile(self, user: str, last: int) -> Profile | None:
        found = self._user(user)
        if found is None:
            return None
        rows = self._database.execute(
            "SELECT item, timestamp, key FROM events WHERE user = ? AND position >= ?"
            " ORDER BY position",
            (found[0], found[1] - last),
        )
        return Profile(found[1], [Event(*row) for row in rows.fetchall()])

    def delete(self, user: str) -> int:
        found = self._user(user)
        if found is None:
            return 0
        self._database.execute("DELETE FROM events WHERE user = ?", (found[0],))
        self._database.execute("DELETE FROM users WHERE number = ?", (found[0],))
        return found[1]

    def erase(self) -> None:
        busy, *_ = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise unavailable(
                "store_busy",
                "the events are deleted, but others are reading the file: their traces in its "
                "write-ahead log could not be removed; delete again",
            )

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        self._database.executemany(
            "INSERT OR IGNORE INTO items_off VALUES (?)", [(item,) for item in off]
        )
        self._database.executemany("DELETE FROM items_off WHERE item = ?", [(item,) for item in on])
        found = self._database.execute("SELECT item FROM items_off ORDER BY item")
        return [item for (item,) in found.fetchall()]

    def close(self) -> None:
        self._database.close()


def _time(index: int, event: Event, last: Time | None, now: Time) -> Time:
    """When an event was; not before the last one."""
    if event.timestamp is None:
        return now if last is None else max(now, last)
    if last is not None and event.timestamp < last:
        field = f"events[{index}].timestamp"
        raise Refusal(
            409,
            "out_of_order",
            f"{field} is {event.timestamp}: the event before it was at {last}; events are appended "
            "in order of time (leave the timestamp out for the time of arrival)",
            field=field,
            value=event.timestamp,
        )
    return event.timestamp


def _check_repeat(index: int, event: Event, known: tuple[ItemId, Time]) -> None:
    """Raise Refusal unless an event with a known key is the one stored under it."""
    item, timestamp = known
    if event.item != item or event.timestamp not in (None, timestamp):
        field = f"events[{index}].key"
        raise Refusal(
            409,
            "key_reused",
            f"{field} is {shown(event.key)}: under it an event with item {shown(item)} at "
            f"{timestamp} is stored",
            field=field,
            value=event.key,
        )
