"""What serving asks of the place where events are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ItemId = int | str
Time = int | float


class Event(NamedTuple):
    """One event of a user.

    Attributes:
        item: external id.
        timestamp: in the unit of the user's other events; None for "now, after the last one".
        key: chosen by the sender; an event whose key is stored is not stored again.
    """

    item: ItemId
    timestamp: Time | None = None
    key: str | None = None


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
    """

    number: int
    start: int
    length: int
    items: list[ItemId]


@dataclass(frozen=True)
class Profile:
    """A user's number of events, and the last of them, oldest first."""

    length: int
    last: list[Event]


class EventStore(Protocol):
    """Events by user, in order. One thread at a time uses an object; several objects may be open.

    Every change stands inside ``transaction``; once that has ended without an error it is on disk.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """All changes made inside or none of them."""
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """Inside a transaction: what is changed inside is undone alone when it fails."""
        ...

    def append(self, user: str, events: Sequence[Event], now: Time) -> Appended:
        """Put events behind those of a user.

        Raises:
            Refusal: 409, an event is older than the one before it, or its key belongs to another.
        """
        ...

    def tail(self, user: str, number: int, start: int, most: int) -> Tail | None:
        """Up to ``most`` events from ``start`` on, from 0 if the user's number is another one.

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
        """After the transaction: leave no trace of what was deleted in the files."""
        ...

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        """Switch items off or on again; gives all that are off."""
        ...

    def close(self) -> None:
        """Give the files back."""
        ...
