"""Events from a store into a log, each once, wherever it is killed.

What is new is written down first, with how far the store has been taken by then: a folder
``store/batch-N``, which appears whole. Then it is appended to the log under a key of its own, by
which the log knows it: done again, it changes nothing. Only then is the next batch looked for. The
newest batch therefore says all: whether it may still have to be appended, and what was taken.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from blossomrec.data.growth.append import append_events
from blossomrec.data.growth.forget import forget_users
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.log import LOG_FILE, LOG_FORMAT, EventLog
from blossomrec.data.vocabulary import read_description
from blossomrec.errors import RunError
from blossomrec.files import flush, new_folder, read_json, remove, write_json
from blossomrec.serving.stores.store import EventStore
from blossomrec.updating.store_events import NewEvents, Position, find_new
from blossomrec.updating.table import as_table

STORE = "store"
BATCH = re.compile(r"batch-(\d+)")
TOLD, EVENTS, POSITIONS = "batch.json", "events.parquet", "positions.parquet"


class Taken(NamedTuple):
    """What came of taking: new events, users forgotten, events that the log cannot have."""

    key: str
    events: int
    forgotten: int
    left_out: int
    example: str | None = None


class Taking:
    """Takes the events of one store into one log.

    Args:
        folder: of the runs, where what was taken is kept.
        log: folder of the log.
    """

    def __init__(self, folder: Path, log: Path):
        self.folder, self.log = folder / STORE, log

    def take(self, store: EventStore, name: str, *, restored: bool = False) -> Taken | None:
        """Append what is new in the store, and forget who was deleted there; None for nothing.

        Args:
            name: of the store, without secrets.
            restored: the store is another one, or an older copy: nobody who is missing is taken for
                deleted.

        Raises:
            RunError: it is another store than before, or an older copy, and this is not told.
            DataError: the log does not take the events.
        """
        self.finish()
        told = self._told()
        if told and told["store"] != name and not restored:
            raise RunError(
                f"{self.folder.parent} takes events from {told['store']}, not from {name}: where "
                "that has moved, give --restored"
            )
        if told and told["events"] and not restored and told["key"] not in self._sources():
            raise RunError(
                f"{self.log} has not what was taken from {name}: where it was prepared anew, give "
                "--restored to match the store with it"
            )
        batch = self._written(store, name, told, restored)
        if batch is None:
            return None
        self.finish()
        return batch

    def finish(self) -> None:
        """Append the newest batch, where that may not have been done."""
        for old in self._batches()[:-1]:
            remove(old)
        told = self._told()
        if not told or told["done"]:
            return
        folder = self._batches()[-1]
        if told["key"] not in self._sources():
            # Once the events are there, those of a user who was deleted and is back are new ones.
            forget_users(self.log, told["deleted"])
            if told["events"]:
                append_events(folder / EVENTS, self.log, AppendOptions(key=told["key"]))
        write_json(folder / TOLD, told | {"done": True, "deleted": []})
        (folder / EVENTS).unlink(missing_ok=True)
        flush(folder)

    def forget_again(self) -> int:
        """Forget who was deleted in the store and has come back to the log with a table."""
        told = self._told()
        if not told or not told["gone"]:
            return 0
        gone, salt = set(told["gone"]), told["salt"]
        users = EventLog.open(self.log).user_vocabulary.read().to_list()
        back = [user for user in users if _digest(salt, user) in gone]
        return len(forget_users(self.log, back)) if back else 0

    def _written(
        self, store: EventStore, name: str, told: dict[str, Any], restored: bool
    ) -> Taken | None:
        """Write down what is new; None for nothing."""
        before = self._positions() if told and not restored else {}
        # Counted before users are looked at: a deletion in between is counted again next time.
        deletions = store.notices().deletions
        new = find_new(store, before, self.log)
        if told:
            self._check_deleted(new, name, store.notices().deletions - told["deletions"])
            if not new.users and new.positions == self._positions():
                return None
        elif deletions:
            warnings.warn(
                f"{name} counts {deletions:,} deletions before its events were first taken: who of "
                f"them is in {self.log} is not known; blossomrec forget removes them",
                stacklevel=3,
            )
        log = EventLog.open(self.log)
        table = as_table(new, log, store.unit())
        salt = told["salt"] if told else secrets.token_hex(16)
        gone = {_digest(salt, user) for user in new.deleted} | set(told["gone"] if told else ())
        if gone:
            gone -= {_digest(salt, user) for user in new.positions}
        batch = {
            "store": name,
            "key": f"store-{secrets.token_hex(16)}",
            "deletions": deletions,
            "salt": salt,
            "gone": sorted(gone),
            "events": len(table.events),
            "deleted": new.deleted,
            "done": False,
        }
        self._write(batch, table.events, new)
        forgotten = int((log.user_vocabulary.rows(new.deleted) >= 0).sum())
        counts = len(table.events), forgotten, table.left_out, table.example
        return Taken(batch["key"], *counts)

    @staticmethod
    def _check_deleted(new: NewEvents, name: str, counted: int) -> None:
        """RunError where more users are missing than the store has deleted, or deletions are."""
        if counted < 0:
            raise RunError(
                f"{name} counts {-counted:,} deletions fewer than at the last update: it is an "
                "older copy; give --restored to match it with the log, and forget nobody"
            )
        if len(new.deleted) > counted:
            raise RunError(
                f"{len(new.deleted):,} users are missing from {name}, which counts "
                f"{counted:,} deletions since the last update: it is another store, or an "
                "older copy; give --restored to match it with the log, and forget nobody"
            )

    def _write(self, batch: dict[str, Any], events: pl.DataFrame, new: NewEvents) -> None:
        batches = self._batches()
        number = int(batches[-1].name.partition("-")[2]) + 1 if batches else 1
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new_folder(self.folder / f"batch-{number:06d}") as folder:
            if len(events):
                events.write_parquet(folder / EVENTS)
            columns = {
                "user": list(new.positions),
                "number": [one.number for one in new.positions.values()],
                "taken": [one.taken for one in new.positions.values()],
                "last": [one.last for one in new.positions.values()],
            }
            schema = {
                "user": pl.String,
                "number": pl.UInt64,
                "taken": pl.Int64,
                "last": pl.UInt64,
            }
            pl.DataFrame(columns, schema).write_parquet(folder / POSITIONS)
            write_json(folder / TOLD, batch)

    def _batches(self) -> list[Path]:
        found = [one for one in self.folder.glob("batch-*") if BATCH.fullmatch(one.name)]
        return sorted(found, key=lambda one: int(one.name.partition("-")[2]))

    def _told(self) -> dict[str, Any]:
        """What the newest batch says; empty where there is none."""
        batches = self._batches()
        if not batches:
            return {}
        path = batches[-1] / TOLD
        try:
            told = read_json(path)
            kinds = {"store": str, "key": str, "deletions": int, "salt": str, "gone": list}
            kinds |= {"events": int, "deleted": list, "done": bool}
            if not all(type(told[name]) is kind for name, kind in kinds.items()):
                raise ValueError("a value is of a wrong type")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        return told

    def _positions(self) -> dict[str, Position]:
        path = self._batches()[-1] / POSITIONS
        try:
            table = pl.read_parquet(path, glob=False)
            if "last" not in table.columns:
                # Written before it was kept.
                table = table.with_columns(last=None)
            rows = table.select("user", "number", "taken", "last").iter_rows()
            return {user: Position(*position) for user, *position in rows}
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{path} is damaged: {error}") from error

    def _sources(self) -> Iterable[str]:
        """Keys of what was appended to the log."""
        path = self.log / LOG_FILE
        return read_description(path, LOG_FORMAT, "a prepared log").get("sources", {})


def _digest(salt: str, user: Any) -> str:
    return hashlib.blake2b(str(user).encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()
