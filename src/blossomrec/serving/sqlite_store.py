"""Events in one SQLite file, with a write-ahead log."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blossomrec.errors import DataError
from blossomrec.serving.refusals import unavailable
from blossomrec.serving.store import (
    Appended,
    Event,
    ItemId,
    Member,
    Notices,
    Profile,
    Tail,
    Time,
    new_events,
)

FORMAT = 2
APPLICATION = 0x626C6F73  # "blos"
BUSY_SECONDS = 20.0
LATEST = 2**63 - 1
# AUTOINCREMENT: the number of a deleted user is never given again. A column without a type keeps
# integers and text as they are.
SCHEMA = """
CREATE TABLE users (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    length INTEGER NOT NULL,
    last NOT NULL,
    change INTEGER NOT NULL
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
# What format 2 adds to format 1.
NOTICES = """
CREATE UNIQUE INDEX user_changes ON users (change);
CREATE TABLE notices (switches INTEGER NOT NULL, deletions INTEGER NOT NULL);
INSERT INTO notices VALUES (0, 0);
"""
FROM_FORMAT_1 = """
ALTER TABLE users ADD COLUMN change INTEGER NOT NULL DEFAULT 0;
UPDATE users SET change = number;
"""


class SQLiteStore:
    """An :class:`EventStore` in the file ``path``, which is made where it is missing.

    A transaction that has ended survives the end of the process and of the machine
    (``synchronous = FULL``); deleted content is overwritten (``secure_delete``). Several processes
    may use a file at the same time, on one machine. A file of format 1 is brought to format 2.

    Raises:
        DataError: the file cannot be opened or is something else.
    """

    failures: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            # What people did is nobody else's business on the machine. Only a new file is opened:
            # to close another would take from this process the locks that SQLite holds on it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._database = self._connected()
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{self.path} cannot be used as a store of events: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )

    def _prepare(self) -> None:
        run = self._database.execute
        run("PRAGMA synchronous = FULL")
        run("PRAGMA secure_delete = ON")
        with self.transaction():
            if run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                self._define(SCHEMA + NOTICES)
                run(f"PRAGMA application_id = {APPLICATION}")
            found, application = self._number("user_version"), self._number("application_id")
            if (application, found) == (APPLICATION, 1):
                self._define(FROM_FORMAT_1 + NOTICES)
                found = FORMAT
        if application != APPLICATION:
            raise DataError(f"{self.path} is an SQLite file, but not a store of events")
        if found != FORMAT:
            raise DataError(f"{self.path} has format {found}: this version reads format {FORMAT}")
        # Once it is known to be ours: this is written into the file.
        run("PRAGMA journal_mode = WAL")

    def _define(self, statements: str) -> None:
        for statement in statements.split(";"):
            self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {FORMAT}")

    def _number(self, pragma: str) -> int:
        return self._database.execute(f"PRAGMA {pragma}").fetchone()[0]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
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
        new = new_events(events, last, lambda key: self._keyed(number, key), now)
        if new:
            number = self._grown(user, number, length + len(new), new[-1].timestamp)
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
        found = self._database.execute("SELECT ifnull(max(change), 0) + 1 FROM users")
        values = (length, last, found.fetchone()[0])
        if number is not None:
            self._database.execute(
                "UPDATE users SET length = ?, last = ?, change = ? WHERE number = ?",
                (*values, number),
            )
            return number
        made = self._database.execute(
            "INSERT INTO users (id, length, last, change) VALUES (?, ?, ?, ?)", (user, *values)
        )
        assert made.lastrowid is not None
        return made.lastrowid

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
        self._database.execute("UPDATE notices SET deletions = deletions + 1")
        return found[1]

    def erase(self) -> None:
        # A connection of its own, because the other one may be inside a transaction.
        with contextlib.closing(self._connected()) as database:
            busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise unavailable(
                "store_busy",
                "the events are deleted, but others are reading the file: their traces in its "
                "write-ahead log could not be removed; delete again",
            )

    def members(self, most: int, before: int | None = None) -> list[Member]:
        found = self._database.execute(
            "SELECT id, length, change FROM users WHERE change < ? ORDER BY change DESC LIMIT ?",
            (LATEST if before is None else before, most),
        )
        return [Member(*row) for row in found.fetchall()]

    def numbers(self, users: Sequence[str]) -> list[int]:
        return [found[0] if (found := self._user(user)) else 0 for user in users]

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        self._database.executemany(
            "INSERT OR IGNORE INTO items_off VALUES (?)", [(item,) for item in off]
        )
        self._database.executemany("DELETE FROM items_off WHERE item = ?", [(item,) for item in on])
        self._database.execute("UPDATE notices SET switches = switches + 1")
        return self.off()

    def off(self) -> list[ItemId]:
        found = self._database.execute("SELECT item FROM items_off ORDER BY item")
        return [item for (item,) in found.fetchall()]

    def notices(self) -> Notices:
        return Notices(*self._database.execute("SELECT * FROM notices").fetchone())

    def close(self) -> None:
        self._database.close()
