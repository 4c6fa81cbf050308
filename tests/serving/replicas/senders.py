"""Clients who append through one door and ask through all others."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

from loads import Answer, K

from blossomrec.serving import Client, ServerError

# Between two appends: the servers of a test share a machine with others.
PAUSE = 0.08
# What is said of a replica, a balancer or a store that is away, and passes.
AWAY = (0, 502, 503, 504)


class Sender(threading.Thread):
    """Appends events with keys, again until they are acknowledged, and then asks everybody else.

    A door is the URL of a replica or of a balancer.

    Attributes:
        sent: (item, key) of the events of each of its users, all of them acknowledged, in order.
        answers: recommendations, each with the history that was acknowledged before it was asked.
        doors: appends acknowledged and answers given by each door.
        stale: what was read through another door and was not what had been acknowledged.
        error: what ended it before its time.
    """

    def __init__(self, number: int, doors: list[str], items: list[Any]):
        super().__init__(daemon=True)
        self._random, self._items = random.Random(number), items
        self._number, self._keys = number, itertools.count()
        self._clients = {door: Client(door, retries=0, timeout=20) for door in doors}
        self.sent = {f"user {number}/{place}": list[tuple[Any, str]]() for place in range(3)}
        self.answers, self.stale = list[Answer](), list[tuple[str, str]]()
        self.doors = {door: [0, 0] for door in doors}
        self.error: Exception | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            while not self.over.wait(PAUSE):
                self._step(self._random.choice(list(self.sent)))
        except Exception as error:
            self.error = error

    def _step(self, user: str) -> None:
        new = [
            (self._random.choice(self._items), f"{self._number}-{next(self._keys)}")
            for _ in range(self._random.randint(1, 3))
        ]
        took = self._append(user, new)
        self.sent[user] += new
        for door in self.doors:
            if door != took:
                self._ask(door, user)

    def _append(self, user: str, new: list[tuple[Any, str]]) -> str:
        """Append through any door; where no acknowledgement comes, again through any other."""
        events = [{"item": item, "key": key} for item, key in new]
        while True:
            door = self._random.choice(list(self.doors))
            try:
                answer = self._clients[door].append(user, events)
            except ServerError as error:
                if error.status not in AWAY:
                    raise
                time.sleep(PAUSE)
                continue
            assert answer["length"] == len(self.sent[user]) + len(new), (door, answer)
            self.doors[door][0] += 1
            return door

    def _ask(self, door: str, user: str) -> None:
        client, known = self._clients[door], self.sent[user]
        history = tuple(item for item, _ in known)
        try:
            found = client.user(user, last=len(known))
            # Who has seen all items still gets some.
            items = client.recommend(user, K, filter_viewed=False)
        except ServerError as error:
            if error.status not in AWAY:
                raise
            return
        if tuple(event["item"] for event in found["events"]) != history:
            self.stale.append((door, user))
        self.answers.append(Answer(client.model, history, items))
        self.doors[door][1] += 1
