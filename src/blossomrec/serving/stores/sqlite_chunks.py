"""Histories in chunks: where each begins, what is in it, and which are free."""

from __future__ import annotations

import sqlite3
from typing import Any

from blossomrec.serving.stores.sqlite_rows import (
    Damaged,
    Rows,
    User,
    chunks_of,
    lines_of,
    unpacked_events,
)


class Chunks:
    """Events of users by number of the user and position, in rows that are never moved."""

    def __init__(self, database: sqlite3.Connection):
        self._database, self._rows = database, Rows(database, "chunks")

    def append(self, number: int, user: User, events: list[bytes]) -> int:
        """Write events behind those of a user; gives the number of the last chunk."""
        chunk, position, size = user.chunk, user.length, 0
        if chunk:
            content = self._rows.read(chunk)
            size, kept = len(content), content.rstrip(b"\0")
            fitting = 0
            while fitting < len(events) and len(kept) + len(events[fitting]) <= size:
                kept += events[fitting]
                fitting += 1
            if fitting:
                self._rows.write(chunk, kept.ljust(size, b"\0"))
            events, position = events[fitting:], position + fitting
        for count, content in chunks_of(events, size):
            chunk = self._new_chunk(content)
            self._database.execute(
                "INSERT INTO histories VALUES (?, ?, ?)", (number, position, chunk)
            )
            position += count
        return chunk

    def _new_chunk(self, content: bytes) -> int:
        free = self._database.execute(
            "SELECT chunk FROM free_chunks WHERE size = ? LIMIT 1", (len(content),)
        ).fetchone()
        if free is None:
            return self._rows.append(content)
        self._database.execute(
            "DELETE FROM free_chunks WHERE size = ? AND chunk = ?", (len(content), *free)
        )
        self._rows.write(free[0], content)
        return free[0]

    def read(self, number: int, start: int, end: int) -> list[Any]:
        """Parts of a user's events, as packed, from position ``start`` to before ``end``."""
        rows = self._database.execute(
            "SELECT position, content FROM histories JOIN chunks ON number = chunk"
            " WHERE user = ?1 AND position < ?3 AND position >= (SELECT max(position)"
            " FROM histories WHERE user = ?1 AND position <= ?2) ORDER BY position",
            (number, start, end),
        )
        at, lines = start, list[bytes]()
        for position, content in rows:
            at = at if lines else position
            if position != at + len(lines):
                break
            lines += lines_of(content)
        if not at <= start < end <= at + len(lines):
            raise Damaged(f"events of the user with number {number} are missing")
        return unpacked_events(lines[start - at : end - at])

    def clear(self, number: int) -> None:
        """Write zeros over all events of a user, and let others have the place."""
        run = self._database.execute
        for (chunk,) in run("SELECT chunk FROM histories WHERE user = ?", (number,)).fetchall():
            self._rows.clear(chunk)
            run(
                "INSERT INTO free_chunks SELECT length(content), number FROM chunks"
                " WHERE number = ?",
                (chunk,),
            )
        run("DELETE FROM histories WHERE user = ?", (number,))
