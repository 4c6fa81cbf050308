"""What serving asks of the place where events are kept."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from blossomrec.data.units import Time
from blossomrec.serving.refusals import Refusal, shown, unavailable
from blossomrec.serving.stores.clock import Clock, other_unit

ItemId = int | str
Context = dict[str, str | int | float]
T = TypeVar("T")

# Transactions that another process came in between, before the server is called busy.
ATTEMPTS = 50
LONGEST_PAUSE = 0.01


class Event(NamedTuple):
    """One event of a user.

    Attributes:
        item: external id.
        timestamp: in the unit of the store's other events; None for "now, after the last one".
        key: chosen by the sender; an event whose key is stored is not stored again.
        kind: name of what the user did, such as "buy"; None where it is not told.
        context: values of the event's context by the name of the column; None without any.
    """

    item: ItemId
    timestamp: Time | None = None
    key: str | None = None
    kind: str | None = None
    context: Context | None = None

    def trimmed(self) -> tuple[Any, ...]:
        """Its parts as a store writes them: without a context, or a kind, that is not told."""
        if self.context is not None:
            return self
        return self[:3] if self.kind is None else self[:4]


class Appended(NamedTuple):
    """What came of appending events: how many are new, how many were there, how many there are."""

    stored: int
    repeated: int
    length: int


class Tail(NamedTuple):
    """The last events of a user, oldest first.

    Attributes:
        number: of the user; never given again, so that a user deleted and come back has another.
        start: position of the first of ``items`` in the user's history.
        length: events of the whole history.
        items: external ids; they may end before the history does.
        times: of the same events, in the unit of the store.
        kinds, contexts: of the same events; None where none of them has any.
    """

    number: int
    start: int
    length: int
    items: list[ItemId]
    times: list[Time]
    kinds: list[str | None] | None = None
    contexts: list[Context | None] | None = None

    @classmethod
    def of(cls, number: int, start: int, length: int, events: Sequence[Sequence[Any]]) -> Tail:
        """The tail of events, each with the parts that :meth:`Event.trimmed` gave."""
        items, times = ([event[part] for event in events] for part in (0, 1))
        parts = max(map(len, events), default=0)
        kinds, contexts = (
            [event[part] if len(event) > part else None for event in events]
            if parts > part
            else None
            for part in (3, 4)
        )
        return cls(number, start, length, items, times, kinds, contexts)


@dataclass(frozen=True)
class Profile:
    """A user's number of events, and the last of them, oldest first."""

    length: int
    last: list[Event]


class Member(NamedTuple):
    """A user in a list of users.

    Attributes:
        length: events of the history.
        last: time of the last event.
        cursor: text from which a list can be gone on with.
    """

    user: str
    length: int
    last: Time
    cursor: str


class Notices(NamedTuple):
    """Counts that rise with what every process has to know of.

    Attributes:
        switches: of items, off or on.
        deletions: of users.
    """

    switches: int
    deletions: int


class Counts(NamedTuple):
    """What a store holds."""

    users: int
    events: int


class Conflict(Exception):  # noqa: N818 (an answer, not a fault)
    """Another process has changed what a transaction has read: nothing of it is stored."""


class EventStore(Protocol):
    """Events by user, in order. One thread at a time uses an object; several objects may be open,
    in several processes.

    Every change stands inside ``transaction``; once that has ended without an error it is on disk,
    and seen by whoever reads after it. What is read inside, other than by ``append`` and of who
    is not there by ``numbers``, may be what was there before.

    Attributes:
        failures: errors that a file, a disk or a connection is the cause of.
    """

    failures: tuple[type[Exception], ...]

    def transaction(self) -> AbstractContextManager[None]:
        """All changes made inside or none of them.

        Raises:
            Conflict: at its end; see :func:`carried_out`.
        """
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """Inside a transaction: what is changed inside is undone alone when it fails."""
        ...

    def append(
        self, user: str, events: Sequence[Event], now: Time, ahead: float | None = None
    ) -> Appended:
        """Put events behind those of a user.

        Items are ids of any kind, also of items that no model knows yet. A key names its event also
        where the id of the item is sent as the digits of the number that is stored, or the other
        way round.

        Args:
            now: seconds since 1970.
            ahead: seconds after now that an event may have as its time; None for any time.

        Raises:
            Refusal: 409, an event is older than the one before it, or its key belongs to another;
                422, it is too far in the future.
        """
        ...

    def tail(self, user: str, number: int, start: int, limit: int) -> Tail | None:
        """Up to ``limit`` events from ``start`` on, from 0 if the user's number is another one.

        None for a user without events.
        """
        ...

    def profile(self, user: str, last: int) -> Profile | None:
        """Length and last events of a user; None without events."""
        ...

    def delete(self, user: str) -> int:
        """Delete a user; gives the number of events that were deleted."""
        ...

    def erase(self) -> None:
        """After the transaction: leave no trace of what was deleted in the files.

        Another thread than that of the transactions may do this, while they go on.
        """
        ...

    def members(self, limit: int, before: str | None = None) -> list[Member]:
        """Up to ``limit`` users, by the time of their last event, the latest first.

        Args:
            before: cursor of a member: only those behind it.

        Raises:
            Refusal: 422, ``before`` is no cursor.
        """
        ...

    def numbers(self, users: Sequence[str]) -> list[int]:
        """Number of each user, 0 for one without events."""
        ...

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        """Switch items off or on again; gives all that are off, numbers before texts."""
        ...

    def off(self) -> list[ItemId]:
        """All items that are off."""
        ...

    def notices(self) -> Notices:
        """What tells other processes to look; cheap enough to be asked before every answer."""
        ...

    def unit(self) -> str | None:
        """The unit of the times, one of ``UNITS``, as the first one showed that looked like a time
        since 1970; None while none did."""
        ...

    def counts(self) -> Counts:
        """How many users and events there are; takes a while where there are many."""
        ...

    def check(self) -> None:
        """Raise one of ``failures`` unless the store can be read and written to."""
        ...

    def passes(self, error: Exception) -> bool:
        """Whether one of ``failures`` may be gone by itself in a moment."""
        ...

    def close(self) -> None:
        """Give files and connections back."""
        ...


def carried_out(store: EventStore, work: Callable[[], T]) -> T:
    """Do ``work`` in a transaction of the store, again where others come in between.

    Raises:
        Refusal: 503, they come in between again and again.
    """
    for attempt in range(ATTEMPTS):
        try:
            with store.transaction():
                result = work()
            return result
        except Conflict:
            # Of two that are in each other's way, one should be the first next time.
            time.sleep(random.uniform(0, LONGEST_PAUSE) * attempt / ATTEMPTS)
    message = f"other processes changed the same users {ATTEMPTS} times in between"
    raise unavailable("store_busy", message)


def cursor_of(last: Time, tie: int | str) -> str:
    """Where a list of users goes on: behind a time, and behind ``tie`` among equal times."""
    return f"{json.dumps(last)}:{tie}"


def read_cursor(text: str) -> tuple[Time, str]:
    """The two parts of what :func:`cursor_of` gave; Refusal for anything else."""
    last, _, tie = text.partition(":")
    with contextlib.suppress(ValueError):
        moment = json.loads(last)
        if tie and type(moment) in (int, float) and abs(moment) < 2**63:
            return moment, tie
    message = f"before is {shown(text)}: it is not the `next` of a list of users"
    raise Refusal(422, "invalid", message, field="before", value=text)


def new_events(
    events: Sequence[Event],
    last: Time | None,
    keyed: Callable[[str], Event | None],
    clock: Clock,
) -> list[Event]:
    """Those of the events that are to be stored, each with its time.

    Args:
        last: time of the user's last event; None for a user without events.
        keyed: gives the event that is stored under a key.

    Raises:
        Refusal: see :meth:`EventStore.append`.
    """
    new: list[Event] = []
    keys: dict[str, Event] = {}
    for index, event in enumerate(events):
        if event.key is not None:
            known = keys.get(event.key) or keyed(event.key)
            if known is not None:
                _check_repeat(index, event, known)
                continue
        last = _time(index, event, last, clock)
        new.append(event._replace(timestamp=last))
        if event.key is not None:
            keys[event.key] = new[-1]
    return new


def _time(index: int, event: Event, last: Time | None, clock: Clock) -> Time:
    """When an event was; not before the last one."""
    if event.timestamp is None:
        now = clock.time()
        clock.check(index, now)
        return now if last is None else max(now, last)
    clock.check(index, event.timestamp)
    if last is not None and event.timestamp < last:
        field = f"events[{index}].timestamp"
        raise Refusal(
            409,
            "out_of_order",
            f"{field} is {event.timestamp}: the event before it was at {last}; events are appended "
            "in order of time (leave the timestamp out for the time of arrival)"
            f"{other_unit(event.timestamp, clock.unit)}",
            field=field,
            value=event.timestamp,
        )
    return event.timestamp


def _check_repeat(index: int, event: Event, known: Event) -> None:
    """Raise Refusal unless an event with a known key is the one stored under it."""
    # 12 and "12" are one item: its type may be another once a model knows it.
    same = str(event.item) == str(known.item)
    same &= (event.kind, event.context) == (known.kind, known.context)
    if not same or event.timestamp not in (None, known.timestamp):
        field = f"events[{index}].key"
        raise Refusal(
            409,
            "key_reused",
            f"{field} is {shown(event.key)}: another event of this user has this key",
            field=field,
            value=event.key,
        )
