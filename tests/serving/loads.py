"""Clients of a server in a process of its own, who know what they were told."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from blossomrec.serving import Client, ServerError
from blossomrec.serving.stores.sqlite_store import SQLiteStore

# More of them, for a longer proof than every run of the tests needs.
KILLS = int(os.environ.get("BLOSSOMREC_KILLS", "2"))
TAKEN = 'blossomrec_reloads_total{outcome="taken"}'
K = 3


class Answer(NamedTuple):
    """What was recommended after a history, and by which version of the model."""

    model: str | None
    history: tuple[Any, ...]
    items: list[dict[str, Any]]


class Load(threading.Thread):
    """Appends events with keys, and asks, until the server is gone or it is told to end.

    Attributes:
        over: set, it ends.
        histories: items of its users, as far as their events were acknowledged; of nobody else.
        answers: all that were given.
    """

    def __init__(self, url, number, item_ids, round_):
        super().__init__()
        self.client = Client(url, retries=0)
        self.random = random.Random(f"{number} {round_}")
        self.prefix, self.item_ids = f"{round_}-{number}", item_ids
        self.users = [f"user {number} {place}" for place in range(3)]
        self.sent, self.acknowledged, self.error = [], [], None
        self.over, self.answers = threading.Event(), list[Answer]()
        self.histories = {user: list[Any]() for user in self.users}

    def run(self):
        try:
            while not self.over.is_set():
                self.step(self.random.choice(self.users))
        except ServerError as error:
            self.error = error

    def step(self, user):
        keys = [
            f"{self.prefix}-{len(self.sent) + place}" for place in range(self.random.randint(1, 3))
        ]
        self.sent += [(user, key) for key in keys]
        events = [{"item": self.random.choice(self.item_ids), "key": key} for key in keys]
        self.client.append(user, events)
        self.acknowledged += [(user, key) for key in keys]
        self.histories[user] += [event["item"] for event in events]
        if self.random.random() < 0.5:
            # Who has seen all items still gets some.
            items = self.client.recommend(user, K, filter_viewed=False)
            self.answers.append(Answer(self.client.model, tuple(self.histories[user]), items))


def stored(path: Path) -> dict[str, list[Any]]:
    """All events by user, after a look at the file."""
    store = SQLiteStore(path)
    assert store._database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = {}
    for user, length, *_ in store.members(1_000):
        last = store.profile(user, length).last
        assert len(last) == length
        found[user] = last
        assert store.append(user, last, 0) == (0, length, length)
    store.close()
    return found


def stored_keys(path: Path) -> list[tuple[str, str]]:
    """(user, key) of every stored event."""
    return [(user, event.key) for user, events in stored(path).items() for event in events]


def metrics(url: str) -> str:
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        return answer.read().decode()


def until(reached: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)
