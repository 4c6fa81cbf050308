"""A store of one's own: events in the memory of one process, gone when it ends.

``memory://NAME`` in place of a file, to try a server without a disk:

    python examples/own_store.py RUN

``tests/test_examples.py`` holds it to the contract of all stores: a subclass of
``blossomrec.serving.testing.StoreContract`` with the fixture ``open_store``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from blossomrec.serving.stores import STORES
from blossomrec.serving.stores.clock import Clock, Time
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


class Stored(NamedTuple):
    """A user's number and events; replaced, never changed."""

    number: int
    events: tuple[Event, ...]


@dataclass
class Content:
    """What all objects of one name share, inside of ``lock``."""

    lock: Any = field(default_factory=threading.RLock)
    users: dict[str, Stored] = field(default_factory=dict)
    off: frozenset[ItemId] = frozenset()
    switches: int = 0
    deletions: int = 0
    unit: str | None = None
    last_number: int = 0

    def copy(self) -> Content:
        return replace(self, users=dict(self.users))

    def undo(self, before: Content) -> None:
        self.__dict__.update(before.__dict__)


CONTENTS: dict[str, Content] = {}


@STORES.register("memory")
class MemoryStore:
    """An ``EventStore`` in memory; stores of one URL are the same one.

    Args:
        where: the URL, such as ``memory://trial``.
    """

    failures: tuple[type[Exception], ...] = (MemoryError,)

    def __init__(self, where: str):
        self._content = CONTENTS.setdefault(where, Content())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        # Nobody else reads or writes meanwhile, so that no transaction is ever in conflict.
        with self._content.lock, self.attempt():
            yield

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        before = self._content.copy()
        try:
            yield
        except BaseException:
            self._content.undo(before)
            raise

    def append(
        self, user: str, events: Sequence[Event], now: Time, ahead: float | None = None
    ) -> Appended:
        content = self._content
        known = content.users.get(user, Stored(0, ()))
        last = known.events[-1].timestamp if known.events else None
        keyed = {event.key: event for event in known.events if event.key}
        clock = Clock(now, content.unit, ahead)
        new = new_events(events, last, keyed.get, clock)
        if new:
            content.unit = clock.unit
            content.last_number += not known.number
            number = known.number or content.last_number
            content.users[user] = Stored(number, (*known.events, *new))
        return Appended(len(new), len(events) - len(new), len(known.events) + len(new))

    def tail(self, user: str, number: int, start: int, limit: int) -> Tail | None:
        known = self._history(user)
        if known is None:
            return None
        length = len(known.events)
        if known.number != number or start > length:
            start = 0
        events = known.events[start : start + limit]
        return Tail.of(known.number, start, length, [event.trimmed() for event in events])

    def profile(self, user: str, last: int) -> Profile | None:
        known = self._history(user)
        if known is None:
            return None
        length = len(known.events)
        return Profile(length, list(known.events[max(0, length - last) :]))

    def delete(self, user: str) -> int:
        known = self._content.users.pop(user, None)
        if known is None:
            return 0
        self._content.deletions += 1
        return len(known.events)

    def erase(self) -> None:
        """Nothing is left: there are no files."""

    def members(self, limit: int, before: str | None = None) -> list[Member]:
        behind = None if before is None else read_cursor(before)
        with self._content.lock:
            users = [
                (known.events[-1].timestamp, user, len(known.events))
                for user, known in self._content.users.items()
            ]
        listed = [one for one in sorted(users, reverse=True) if behind is None or one[:2] < behind]
        return [
            Member(user, length, last, cursor_of(last, user))
            for last, user, length in listed[:limit]
        ]

    def numbers(self, users: Sequence[str]) -> list[int]:
        with self._content.lock:
            found = map(self._content.users.get, users)
            return [0 if known is None else known.number for known in found]

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        content = self._content
        content.off = (content.off | set(off)) - set(on)
        content.switches += 1
        return self.off()

    def off(self) -> list[ItemId]:
        with self._content.lock:
            return sorted(self._content.off, key=lambda item: (isinstance(item, str), item))

    def notices(self) -> Notices:
        with self._content.lock:
            return Notices(self._content.switches, self._content.deletions)

    def unit(self) -> str | None:
        with self._content.lock:
            return self._content.unit

    def counts(self) -> Counts:
        with self._content.lock:
            events = sum(len(known.events) for known in self._content.users.values())
            return Counts(len(self._content.users), events)

    def check(self) -> None:
        """There is nothing that could be missing."""

    def passes(self, error: Exception) -> bool:
        return False

    def close(self) -> None:
        """The events stay for the other objects."""

    def _history(self, user: str) -> Stored | None:
        with self._content.lock:
            return self._content.users.get(user)


if __name__ == "__main__":
    from blossomrec.cli import main

    sys.exit(main(["serve", *sys.argv[1:], "--store", "memory://trial"]))
