"""A log, a store that was filled from it, and a folder of runs; and what happens in a day."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from blossomrec.config import ModelConfig, RunConfig, TrainingConfig
from blossomrec.data.log import EventLog
from blossomrec.files import read_json, write_json
from blossomrec.run.weights import load_model
from blossomrec.serving.stores.bulk import import_events
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event
from blossomrec.updating import DailyOptions, update
from blossomrec.updating.runs import Runs
from small_options import MODEL, TRAINING

USERS, ITEMS, START, DAY = 30, 50, 1_700_000_000, 86_400
CONFIG = RunConfig(ModelConfig(**MODEL), TrainingConfig(**TRAINING | {"epochs": 2}))


def walks(users: range = range(USERS), seed: int = 0) -> pl.DataFrame:
    """Walks around a ring of items."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"user {user}", int((start + n) % ITEMS) + 100, START + 60 * n + user)
        for user in users
        for start in rng.integers(ITEMS, size=1)
        for n in range(int(rng.integers(6, 16)))
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


class World:
    """The folders below one, and the newest state of them."""

    def __init__(self, folder: Path):
        self.log, self.path, self.runs = folder / "log", folder / "events.sqlite", folder / "runs"

    def begin(self, events: pl.DataFrame | None = None, **options: Any) -> World:
        """Prepare the log and fill the store from it."""
        EventLog.prepare(walks() if events is None else events, self.log, **options)
        store = self.store()
        import_events(self.log, store)
        store.close()
        return self

    def copy(self, folder: Path) -> World:
        """The same in another folder."""
        shutil.copytree(self.log.parent, folder, symlinks=True)
        other = World(folder)
        # The store has moved with it, and is no other one.
        for told in other.runs.glob("store/*/batch.json"):
            write_json(told, read_json(told) | {"store": str(other.path.resolve())})
        return other

    def store(self) -> SQLiteStore:
        return SQLiteStore(self.path)

    def update(self, config: RunConfig | None = None, **options: Any) -> dict[str, Any]:
        """One update; the first run has the tiny configuration."""
        if config is None and Runs(self.runs).current() is None:
            config = CONFIG
        options.setdefault("store", str(self.path))
        told = DailyOptions(**options)
        return update(self.log, self.runs, config, told, tell=lambda line: None, progress=False)

    def add(self, user: str, items: list[Any], day: int = 1, **more: Any) -> None:
        """Events of a user in the store."""
        store = self.store()
        with store.transaction():
            events = [Event(item, START + day * DAY + n, **more) for n, item in enumerate(items)]
            store.append(user, events, START + day * DAY)
        store.close()

    def delete(self, user: str) -> None:
        store = self.store()
        with store.transaction():
            store.delete(user)
        store.close()

    def a_day(self, day: int = 1, users: int = 20) -> None:
        """New events of known users, with a new item, and of a new user."""
        rng = np.random.default_rng(day)
        for user in range(users):
            start = int(rng.integers(ITEMS))
            ring = [100 + (start + n) % ITEMS for n in range(4)]
            self.add(f"user {user}", [*ring[:3], 1_000 + day, ring[3]], day)
        self.add(f"new on day {day}", [100, 101, 102, 103], day)

    def stored(self) -> Counter[tuple[str, str, Any]]:
        """How often the store has each event."""
        found, store = Counter(), self.store()
        for member in store.members(10_000):
            profile = store.profile(member.user, member.length)
            assert profile is not None
            found.update((member.user, str(one.item), one.timestamp) for one in profile.last)
        store.close()
        return found

    def logged(self) -> Counter[tuple[str, str, Any]]:
        """How often the log has each event."""
        log = EventLog.open(self.log)
        users = np.repeat(np.arange(log.num_users), np.diff(log.offsets))
        return Counter(
            zip(
                map(str, log.user_vocabulary.ids(users)),
                map(str, log.item_vocabulary.ids(np.asarray(log.items))),
                log.timestamps.tolist(),
                strict=True,
            )
        )

    def history(self) -> list[dict[str, Any]]:
        return Runs(self.runs).history()

    def current(self) -> str | None:
        """The run in use, which must be whole."""
        runs = Runs(self.runs)
        name = runs.current()
        if name is not None:
            load_model(runs.path(name))
        return name
