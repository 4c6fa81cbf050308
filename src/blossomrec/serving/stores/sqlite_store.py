"""Events in one SQLite file, with a write-ahead log."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blossomrec.data.units import Time
from blossomrec.errors import DataError
from blossomrec.serving.refusals import unavailable
from blossomrec.serving.stores.clock import Clock
from blossomrec.serving.stores.sqlite_chunks import Chunks
from blossomrec.serving.stores.sqlite_formats import (
    APPLICATION,
    FORMAT,
    define,
    drop_old,
    old_histories,
    put_aside,
)
from blossomrec.serving.stores.sqlite_rows import (
    SECRET_BYTES,
    Directory,
    Rows,
    User,
    keyed_hash,
    packed_event,
)
from blossomrec.serving.stores.store import (
    Appended,
    Counts,
    Event,
    ItemId,
    Member,
    Notices,
    Profile,
    Tail,
    cursor_of,
    new_events,
    read_cursor,
)

BUSY_SECONDS = 20.0
# Bytes that the disk must have left for the store to be called ready.
LEAST_FREE = 1 << 20
# They pass when others have done their work; those of the disk and of the file do not.
PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class SQLiteStore:
    """An :class:`EventStore` in the file ``path``, which is made where it is missing.

    A transaction that has ended survives the end of the process and of the machine
    (``synchronous = FULL``). What is deleted is written over in its place, and is in no other
    (see ``sqlite_rows``). Several processes may use a file at the same time, on one machine. A file
    of an earlier format is brought to this one.

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
        # No temporary file ever holds what people did.
        run("PRAGMA temp_store = MEMORY")
        self._users, self._chunks = Rows(self._database, "users"), Chunks(self._database)
        self._files: dict[str, tuple[int, int] | None] = {}
        self._unit: str | None = None
        with self.transaction():
            if run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                define(self._database)
            found, application = self._number("user_version"), self._number("application_id")
            if application == APPLICATION and found in (1, 2):
                self._take_over(found)
                found = FORMAT
            if application == APPLICATION and found == FORMAT:
                self._open_directory()
        if application != APPLICATION:
            raise DataError(f"{self.path} is an SQLite file, but not a store of events")
        if found != FORMAT:
            raise DataError(f"{self.path} has format {found}: this version reads format {FORMAT}")
        # Once it is known to be ours: this is written into the file.
        run("PRAGMA journal_mode = WAL")
        run("SELECT 1 FROM store").fetchone()
        self._files = {path: _identity(path) for path in (str(self.path), f"{self.path}-wal")}

    def _take_over(self, found: int) -> None:
        put_aside(self._database)
        define(self._database)
        self._open_directory()
        for user, events in old_histories(self._database, found):
            self.append(user, events, 0)
        drop_old(self._database)

    def _open_directory(self) -> None:
        (key,) = self._database.execute("SELECT hash_key FROM store").fetchone()
        self._directory = Directory(self._users, Rows(self._database, "nodes"), key)

    def _number(self, pragma: str) -> int:
        return self._database.execute(f"PRAGMA {pragma}").fetchone()[0]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._check_there(*self._files)
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._unit = None
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All that is read inside was there at the same time."""
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN")
        try:
            yield
        finally:
            if self._database.in_transaction:
                self._database.execute("COMMIT")

    def _check_there(self, *paths: str) -> None:
        """What is written to a file that nobody can find is lost with the process."""
        for path in paths:
            if _identity(path) != self._files[path]:
                raise sqlite3.OperationalError(
                    f"{path} has been removed or replaced: stop all that use it, put it back and "
                    "start again"
                )

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        self._database.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            self._unit = None
            # After some errors, such as a full disk, SQLite has undone the whole transaction.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK TO attempt")
            raise
        finally:
            if self._database.in_transaction:
                self._database.execute("RELEASE attempt")

    def append(
        self, user: str, events: Sequence[Event], now: Time, ahead: float | None = None
    ) -> Appended:
        number, known = self._directory.find(user) or (0, None)
        last = None if known is None else known.last
        unit = self.unit()
        clock = Clock(now, unit, ahead)
        new = new_events(events, last, lambda key: self._keyed(number, known, key), clock)
        length = 0 if known is None else known.length
        if new:
            if known is None:
                known = User(0, 0, 0, secrets.token_bytes(SECRET_BYTES), user)
                number = self._directory.join(known)
            self._grow(number, known, new)
        if new and clock.unit != unit:
            self._database.execute("UPDATE store SET unit = ?", (clock.unit,))
        return Appended(len(new), len(events) - len(new), length + len(new))

    def _keyed(self, number: int, user: User | None, key: str) -> Event | None:
        if user is None:
            return None
        found = self._database.execute(
            "SELECT position FROM event_keys WHERE user = ? AND hash = ?",
            (number, keyed_hash(user.secret, key)),
        ).fetchone()
        if found is None:
            return None
        (parts,) = self._chunks.read(number, found[0], found[0] + 1)
        return Event(*parts)

    def _grow(self, number: int, user: User, new: Sequence[Event]) -> None:
        length = user.length + len(new)
        chunk = self._chunks.append(number, user, [packed_event(event) for event in new])
        for position, event in enumerate(new, user.length):
            if event.key is not None:
                row = (number, keyed_hash(user.secret, event.key), position)
                self._database.execute("INSERT INTO event_keys VALUES (?, ?, ?)", row)
        last: Any = new[-1].timestamp
        row = (number, last, length)
        self._database.execute("INSERT OR REPLACE INTO recent VALUES (?, ?, ?)", row)
        grown = User(length, chunk, last, user.secret, user.id)
        self._users.write(number, grown.packed())

    def tail(self, user: str, number: int, start: int, limit: int) -> Tail | None:
        with self._snapshot():
            found = self._directory.find(user)
            if found is None:
                return None
            here, length = found[0], found[1].length
            if here != number or start > length:
                start = 0
            if start == length:
                return Tail(here, start, length, [], [])
            events = self._chunks.read(here, start, min(start + limit, length))
            return Tail.of(here, start, length, events)

    def profile(self, user: str, last: int) -> Profile | None:
        with self._snapshot():
            found = self._directory.find(user)
            if found is None:
                return None
            number, length = found[0], found[1].length
            events = self._chunks.read(number, max(0, length - last), length) if last else []
            return Profile(length, [Event(*event) for event in events])

    def delete(self, user: str) -> int:
        found = self._directory.find(user)
        if found is None:
            return 0
        (number, known), run = found, self._database.execute
        self._chunks.clear(number)
        run("DELETE FROM event_keys WHERE user = ?", (number,))
        run("DELETE FROM recent WHERE user = ?", (number,))
        self._directory.leave(number, user)
        run("UPDATE store SET deletions = deletions + 1")
        return known.length

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

    def members(self, limit: int, before: str | None = None) -> list[Member]:
        behind: tuple[Any, ...] = ()
        if before is not None:
            last, tie = read_cursor(before)
            # Another store's cursor is behind all users of that time.
            behind = (last, int(tie) if tie.isdecimal() else 0)
        found = self._database.execute(
            "SELECT content, recent.length, last, user FROM recent JOIN users ON number = user"
            + (" WHERE (last, user) < (?, ?)" if behind else "")
            + " ORDER BY last DESC, user DESC LIMIT ?",
            (*behind, limit),
        )
        return [
            Member(User.unpacked(row).id, length, last, cursor_of(last, user))
            for row, length, last, user in found.fetchall()
        ]

    def numbers(self, users: Sequence[str]) -> list[int]:
        with self._snapshot():
            found = map(self._directory.find, users)
            return [0 if one is None else one[0] for one in found]

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        self._database.executemany(
            "INSERT OR IGNORE INTO items_off VALUES (?)", [(item,) for item in off]
        )
        self._database.executemany("DELETE FROM items_off WHERE item = ?", [(item,) for item in on])
        self._database.execute("UPDATE store SET switches = switches + 1")
        return self.off()

    def off(self) -> list[ItemId]:
        found = self._database.execute("SELECT item FROM items_off ORDER BY item")
        return [item for (item,) in found.fetchall()]

    def notices(self) -> Notices:
        found = self._database.execute("SELECT switches, deletions FROM store")
        return Notices(*found.fetchone())

    def unit(self) -> str | None:
        # It stays what it is once it is known.
        if self._unit is None:
            (self._unit,) = self._database.execute("SELECT unit FROM store").fetchone()
        return self._unit

    def counts(self) -> Counts:
        found = self._database.execute("SELECT count(*), ifnull(sum(length), 0) FROM recent")
        return Counts(*found.fetchone())

    def check(self) -> None:
        self._check_there(*self._files)
        disk = os.statvfs(self.path.parent)
        if disk.f_bavail * disk.f_frsize < LEAST_FREE:
            raise sqlite3.OperationalError(f"the disk of {self.path} is full")
        # A connection of its own: what the other one has in memory says nothing of the file.
        with contextlib.closing(self._connected()) as database:
            try:
                database.execute("PRAGMA busy_timeout = 0")
                database.execute("UPDATE store SET looks = looks + 1")
            except sqlite3.Error as error:
                # Who waits for another one's work finds the store at work.
                if not self.passes(error):
                    raise

    def passes(self, error: Exception) -> bool:
        # Extended codes have the plain one in their last byte.
        return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in PASSING

    def close(self) -> None:
        self._database.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
