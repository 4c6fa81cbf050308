"""The tables of an SQLite store, and how files of earlier formats become files of this one."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator

from blossomrec.serving.stores.sqlite_rows import EMPTY_NODE, SECRET_BYTES
from blossomrec.serving.stores.store import Event

FORMAT = 3
APPLICATION = 0x626C6F73  # "blos"
# What is known of people stands in users, chunks and nodes alone: see sqlite_rows.
SCHEMA = """
CREATE TABLE users (number INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE chunks (number INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE nodes (number INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE histories (
    user INTEGER NOT NULL,
    position INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    PRIMARY KEY (user, position)
) WITHOUT ROWID;
CREATE TABLE event_keys (
    user INTEGER NOT NULL,
    hash BLOB NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (user, hash)
) WITHOUT ROWID;
CREATE TABLE recent (user INTEGER PRIMARY KEY, last NOT NULL, length INTEGER NOT NULL);
CREATE INDEX recent_last ON recent (last, user);
CREATE TABLE free_chunks (
    size INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    PRIMARY KEY (size, chunk)
) WITHOUT ROWID;
CREATE TABLE items_off (item NOT NULL PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE store (
    hash_key BLOB NOT NULL,
    unit TEXT,
    switches INTEGER NOT NULL,
    deletions INTEGER NOT NULL,
    looks INTEGER NOT NULL
);
"""
# Formats 1 and 2 had a row for each user and each event; format 1 had no notices.
OLD_TABLES = ("users", "events", "items_off", "notices")


def define(database: sqlite3.Connection) -> None:
    """Make the tables of an empty store."""
    for statement in SCHEMA.split(";"):
        database.execute(statement)
    database.execute("INSERT INTO nodes (content) VALUES (?)", (EMPTY_NODE,))
    key = secrets.token_bytes(SECRET_BYTES)
    database.execute("INSERT INTO store VALUES (?, NULL, 0, 0, 0)", (key,))
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {FORMAT}")


def put_aside(database: sqlite3.Connection) -> None:
    """Rename the tables of a format before, to make room for those of this one."""
    database.execute("DROP INDEX event_keys")
    for table in _there(database, ""):
        database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")


def old_histories(database: sqlite3.Connection, found: int) -> Iterator[tuple[str, list[Event]]]:
    """Histories that were put aside; those of the users who had events last come last."""
    order = "number" if found == 1 else "change"
    for number, user in database.execute(f"SELECT number, id FROM old_users ORDER BY {order}"):
        rows = database.execute(
            "SELECT item, timestamp, key FROM old_events WHERE user = ? ORDER BY position",
            (number,),
        )
        yield user, [Event(*row) for row in rows]


def drop_old(database: sqlite3.Connection) -> None:
    """Take over what else there was, and drop what was put aside, whose pages are zeroed."""
    database.execute("INSERT INTO items_off SELECT item FROM old_items_off")
    there = _there(database, "old_")
    if "notices" in there:
        counts = database.execute("SELECT switches, deletions FROM old_notices").fetchone()
        database.execute("UPDATE store SET switches = ?, deletions = ?", counts)
    for table in there:
        database.execute(f"DROP TABLE old_{table}")


def _there(database: sqlite3.Connection, prefix: str) -> list[str]:
    found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [table for table in OLD_TABLES if (f"{prefix}{table}",) in found]
