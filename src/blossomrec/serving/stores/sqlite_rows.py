"""Rows of an SQLite file whose content is never copied to another place, so that it can be erased.

SQLite moves rows between pages when it balances a tree, and leaves copies in the gaps of pages,
which ``secure_delete`` does not reach. Two kinds of row never move: one that is appended under the
largest number so far, and one whose content is replaced by other content of the same length, which
is written over the old. All that is known of people stands in such rows (:class:`Rows`), in any
other table there are numbers without a name alone.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from blossomrec.data.units import Time
from blossomrec.serving.stores.store import Event

SECRET_BYTES = 16
# Of a chunk of events: 4,000 bytes fill a page of 4,096.
SMALLEST_CHUNK = 125
LARGEST_CHUNK = 4_000
# Length, change, last chunk, whether the last time is an integer, the last time, the user's secret;
# then the id.
RECORD = struct.Struct(f"<qq?8s{SECRET_BYTES}s")
INTEGER, FLOAT = struct.Struct("<q"), struct.Struct("<d")
# Numbers in a node of the directory; a node for each six bits of a hash.
BITS = 6
ENTRIES = 1 << BITS
ENTRY = struct.Struct("<q")
# Numbers of users that are known without a look into the trie.
MOST_KEPT = 50_000
EMPTY_NODE = bytes(ENTRY.size * ENTRIES)
ROOT = 1
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Damaged(sqlite3.DatabaseError):
    """What stands in the file does not fit together."""


class Rows:
    """A table of ``number`` and ``content`` whose content is appended and written over only."""

    def __init__(self, database: sqlite3.Connection, table: str):
        self._database, self._table = database, table
        self._read = f"SELECT content FROM {table} WHERE number = ?"
        self._append = f"INSERT INTO {table} (content) VALUES (?)"
        self._write = f"UPDATE {table} SET content = ? WHERE number = ?"
        self._clear = f"UPDATE {table} SET content = zeroblob(length(content)) WHERE number = ?"

    def find(self, number: int) -> bytes | None:
        """Content of a row; None where there is none."""
        found = self._database.execute(self._read, (number,)).fetchone()
        return None if found is None else found[0]

    def read(self, number: int) -> bytes:
        """Content of a row that must be there."""
        found = self.find(number)
        if found is None:
            raise Damaged(f"row {number} of {self._table} is missing")
        return found

    def append(self, content: bytes) -> int:
        """Put a row behind the others; gives its number."""
        number = self._database.execute(self._append, (content,)).lastrowid
        assert number is not None
        return number

    def write(self, number: int, content: bytes) -> None:
        """Write over the content of a row; the length must be the same."""
        self._database.execute(self._write, (content, number))

    def clear(self, number: int) -> None:
        """Write zeros over the content of a row."""
        self._database.execute(self._clear, (number,))


class User(NamedTuple):
    """What is known of a user, in a row of one length for good.

    Attributes:
        length: events of the history.
        chunk: the last one, 0 for none.
        last: time of the last event.
        secret: key of the hashes of the user's event keys, which say nothing once it is erased.
    """

    length: int
    chunk: int
    last: Time
    secret: bytes
    id: str

    def packed(self) -> bytes:
        whole = isinstance(self.last, int)
        last = INTEGER.pack(self.last) if isinstance(self.last, int) else FLOAT.pack(self.last)
        fixed = (self.length, self.chunk, whole, last, self.secret)
        return RECORD.pack(*fixed) + self.id.encode()

    @staticmethod
    def unpacked(content: bytes) -> User:
        length, chunk, whole, last, secret = RECORD.unpack_from(content)
        (time,) = (INTEGER if whole else FLOAT).unpack(last)
        return User(length, chunk, time, secret, content[RECORD.size :].decode())


def keyed_hash(key: bytes, text: str) -> bytes:
    """16 bytes that tell nothing of the text to those who do not have the key."""
    return hashlib.blake2b(text.encode(), key=key, digest_size=16).digest()


class Entry(NamedTuple):
    """Where the directory has, or would have, the number of a user; 0 for none."""

    node: int
    shift: int
    index: int
    number: int


class Directory:
    """Users by hashes of their ids: a trie whose nodes are never moved.

    A node holds a number for each value of six bits of the hash: 0, that of a user, or that of the
    node for the next six bits, negative.
    """

    def __init__(self, users: Rows, nodes: Rows, key: bytes):
        self._users, self._rows, self._key = users, nodes, key
        # Numbers by hash. A number is never given to another user, so that none of these is wrong:
        # whether the user is still there shows in the user's row.
        self._numbers: dict[int, int] = {}

    def find(self, user: str) -> tuple[int, User] | None:
        """Number of a user, and what is known of the user; None for nobody."""
        digest = self._digest(user)
        kept = self._numbers.pop(digest, 0)
        number = kept or self.entry(user).number
        # A number that was kept may be of a transaction that was undone, or of a user who is gone.
        content = self._users.find(number)
        found = None if content is None else User.unpacked(content)
        if found is not None and found.length and found.id == user:
            if len(self._numbers) >= MOST_KEPT:
                self._numbers.clear()
            self._numbers[digest] = number
            return number, found
        # Who was deleted may be back under another number.
        return self.find(user) if kept else None

    def entry(self, user: str) -> Entry:
        """The entry at which the path of an id ends; it may be another user's."""
        digest = self._digest(user)
        node, shift = ROOT, 0
        while True:
            index = digest >> shift & ENTRIES - 1
            (number,) = ENTRY.unpack_from(self._rows.read(node), ENTRY.size * index)
            if number >= 0:
                return Entry(node, shift, index, number)
            node, shift = -number, shift + BITS

    def join(self, user: User) -> int:
        """Give a user who is not there a row and an entry; gives the user's number."""
        entry, number = self.entry(user.id), self._users.append(user.packed())
        other = User.unpacked(self._users.read(entry.number)).id if entry.number else None
        # Who has the entry goes further down, as far as the hashes of both are the same.
        while other is not None:
            shift = entry.shift + BITS
            index = self._digest(other) >> shift & ENTRIES - 1
            node = self._rows.append(_with(EMPTY_NODE, index, entry.number))
            self._write(entry, -node)
            below = self._digest(user.id) >> shift & ENTRIES - 1
            if below != index:
                other = None
            entry = Entry(node, shift, below, entry.number)
        self._write(entry, number)
        return number

    def leave(self, number: int, user: str) -> None:
        """Forget a user."""
        self._numbers.pop(self._digest(user), None)
        self._write(self.entry(user), 0)
        self._users.clear(number)

    def _write(self, entry: Entry, number: int) -> None:
        self._rows.write(entry.node, _with(self._rows.read(entry.node), entry.index, number))

    def _digest(self, user: str) -> int:
        return int.from_bytes(keyed_hash(self._key, user), "little")


def _with(node: bytes, index: int, number: int) -> bytes:
    start = ENTRY.size * index
    return node[:start] + ENTRY.pack(number) + node[start + ENTRY.size :]


def packed_event(event: Event) -> bytes:
    """An event as it stands in a chunk: a line of JSON."""
    return f"{ENCODE(event.trimmed())}\n".encode()


def lines_of(chunk: bytes) -> list[bytes]:
    """The events of a chunk, each as its line."""
    return chunk.rstrip(b"\0\n").split(b"\n")


def unpacked_events(lines: Sequence[bytes]) -> list[Any]:
    """Item, time and key of events, and kind and context of those that have any."""
    try:
        return json.loads(b"[%b]" % b",".join(lines))
    except ValueError as error:
        raise Damaged(f"events cannot be read: {error}") from error


def chunks_of(events: Sequence[bytes], before: int) -> Iterator[tuple[int, bytes]]:
    """Events in chunks that have room for more, with the number of events in each.

    Args:
        before: size of the chunk before the first one: the next one may be twice as large.
    """
    start, left = 0, sum(map(len, events))
    while start < len(events):
        wanted = max(len(events[start]), min(LARGEST_CHUNK, max(left, 2 * before)))
        size = SMALLEST_CHUNK
        while size < wanted:
            size *= 2
        end, content = start, b""
        while end < len(events) and len(content) + len(events[end]) <= size:
            content += events[end]
            end += 1
        yield end - start, content.ljust(size, b"\0")
        start, left, before = end, left - len(content), size
