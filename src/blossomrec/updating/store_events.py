"""What a store has that was not taken before: new events of all users, and who was deleted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from blossomrec.data.log import EventLog
from blossomrec.serving.stores.store import EventStore, Tail
from blossomrec.updating.log_times import LogTimes

# Users listed, and events of one of them read, at a time.
USERS_TOGETHER, EVENTS_TOGETHER = 1_000, 10_000


class Position(NamedTuple):
    """How far a user's events were taken.

    Attributes:
        number: of the user in the store; who was deleted and is back has another one.
        taken: the first events, which are in the log.
        last: a digest of the last one of those; None where it is not known.
    """

    number: int
    taken: int
    last: int | None = None


@dataclass
class NewEvents:
    """What is new in a store.

    Attributes:
        positions: how far the events of each user are taken once these are in the log.
        deleted: users who were there before and are not, or were deleted and are back: their
            events of before are to leave the log.
        users, items, times, kinds, contexts: of the new events, by user, oldest first.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)
    kinds: list[Any] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def add(self, user: str, tail: Tail, new: Sequence[int]) -> None:
        """Take events of a tail, by their numbers in it."""
        none = [None] * len(tail.items)
        self.users += [user] * len(new)
        for column, values in (
            (self.items, tail.items),
            (self.times, tail.times),
            (self.kinds, tail.kinds or none),
            (self.contexts, tail.contexts or none),
        ):
            column += [values[place] for place in new]


def find_new(store: EventStore, before: dict[str, Position], folder: Path) -> NewEvents:
    """Look through a store for what was not taken before.

    Of a user whose position is known, events behind it are new. Of another one, or where the store
    has fewer events than were taken, or another one at the position, those are new that the log
    does not have, by item and time: the store may have been filled from the log, or be an older
    copy of what it was.

    Args:
        before: how far events were taken.
        folder: of the log.
    """
    found, history = NewEvents(), _InLog(store, folder)
    missing = dict(before)
    for page in _pages(store):
        for user, number, length in page:
            missing.pop(user, None)
            _look(store, user, Position(number, length), before.get(user), found, history)
    # Who had a new event while users were listed may not have been among them.
    names = list(missing)
    for start in range(0, len(names), USERS_TOGETHER):
        users = names[start : start + USERS_TOGETHER]
        for user, number in zip(users, store.numbers(users), strict=True):
            if number:
                found.positions[user] = before[user]
            else:
                found.deleted.append(user)
    return found


def _pages(store: EventStore) -> Iterator[list[tuple[str, int, int]]]:
    """Users with their numbers and numbers of events."""
    cursor = None
    while members := store.members(USERS_TOGETHER, cursor):
        numbers = store.numbers([one.user for one in members])
        yield [
            (one.user, number, one.length)
            for one, number in zip(members, numbers, strict=True)
            if number
        ]
        cursor = members[-1].cursor


def _look(
    store: EventStore,
    user: str,
    there: Position,
    before: Position | None,
    found: NewEvents,
    history: _InLog,
) -> None:
    """Take the new events of one user."""
    if before is not None and before.number == there.number:
        if before.taken == there.taken:
            found.positions[user] = before
            return
        start = before.taken if _goes_on(store, user, there, before) else 0
        matched, last = not start, before.last if start else None
    else:
        start, matched, last = 0, before is None, None
        if before is not None:
            found.deleted.append(user)
    known = history.of(user) if matched else None
    while start < there.taken:
        tail = store.tail(user, there.number, start, EVENTS_TOGETHER)
        if tail is None or tail.number != there.number or not tail.items:
            # Deleted just now: the next update finds out.
            break
        new = range(len(tail.items))
        found.add(user, tail, new if known is None else known.without(tail))
        start += len(tail.items)
        last = _digest(tail)
    found.positions[user] = Position(there.number, start, last)


def _goes_on(store: EventStore, user: str, there: Position, before: Position) -> bool:
    """Whether a user's history goes on from the one whose first events were taken.

    In an older copy of the store another event may have taken the place of the last one.
    """
    if before.last is None or not 0 < before.taken < there.taken:
        return before.taken < there.taken
    tail = store.tail(user, there.number, before.taken - 1, 1)
    if tail is None or tail.number != there.number or not tail.items:
        # Deleted just now: the next update finds out.
        return True
    return _digest(tail) == before.last


def _digest(tail: Tail) -> int:
    """64 bits that tell the last event of a tail from others of the user."""
    event = f"{tail.items[-1]} {tail.times[-1]!r}".encode()
    return int.from_bytes(hashlib.blake2b(event, digest_size=8).digest())


class _InLog:
    """The events that a log has of the users of a store."""

    def __init__(self, store: EventStore, folder: Path):
        self._store, self._folder = store, folder

    @cached_property
    def _log(self) -> EventLog:
        return EventLog.open(self._folder)

    @cached_property
    def _times(self) -> LogTimes:
        return LogTimes(self._log, self._store.unit())

    def of(self, user: str) -> _Known | None:
        """What the log has of a user; None for nothing."""
        (row,) = self._log.user_vocabulary.rows([user]).tolist()
        if row < 0:
            return None
        part = slice(self._log.offsets[row], self._log.offsets[row + 1])
        items = self._log.item_vocabulary.ids(self._log.items[part]).to_list()
        times = self._log.timestamps[part].tolist()
        return _Known(Counter(zip(map(str, items), times, strict=True)), self._times)


@dataclass
class _Known:
    """Events of a user in the log, each of which stands for one in the store."""

    events: Counter[tuple[str, Any]]
    times: LogTimes

    def without(self, tail: Tail) -> list[int]:
        """The numbers of those events of a tail that are not among them."""
        new = []
        for place, (item, time) in enumerate(zip(tail.items, tail.times, strict=True)):
            event = str(item), self.times.of(time)
            if self.events[event] > 0:
                self.events[event] -= 1
            else:
                new.append(place)
        return new
