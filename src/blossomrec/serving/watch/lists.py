"""The last list of each user, in memory and for a while."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from blossomrec.data.units import UNITS, Time, unit_of
from blossomrec.serving.stores.store import ItemId

# Items of a list that are remembered, from the first one on.
LONGEST = 100
# Users whose deletion is looked for in one go.
USERS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class LastList:
    """What was recommended to a user.

    Attributes:
        version: of the model that made the list.
        at: when, in seconds since 1970.
        items: best first, at most ``LONGEST``.
    """

    version: str
    at: float
    items: tuple[ItemId, ...]

    def rank(self, item: ItemId) -> int | None:
        """Where an item stands, from 1; None where it does not."""
        return self.items.index(item) + 1 if item in self.items else None

    def is_after(self, timestamp: Time | None) -> bool:
        """Whether an event had happened before the list was made, as far as its time tells."""
        unit = None if timestamp is None else unit_of(timestamp)
        if timestamp is None or unit is None:
            return False
        # In whole seconds, as a store may keep them.
        return timestamp // UNITS[unit] < int(self.at)


class LastLists:
    """An LRU cache of lists by user; any thread may use it.

    Args:
        limit: users whose list is remembered; 0 for none.
        seconds: for which a list is remembered.
        now: gives the seconds since 1970.
    """

    def __init__(self, limit: int, seconds: float, now: Callable[[], float] = time.time):
        self._limit, self._seconds, self._now = limit, seconds, now
        self._lock = threading.Lock()
        # In order of age: a list that is looked at stays where it is.
        self._lists: OrderedDict[str, LastList] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            self._drop_old()
            return len(self._lists)

    def remember(self, user: str, version: str, items: Sequence[ItemId]) -> None:
        """Remember a list in the place of the one before."""
        if not self._limit:
            return
        made = LastList(version, self._now(), tuple(items[:LONGEST]))
        with self._lock:
            self._lists[user] = made
            self._lists.move_to_end(user)
            if len(self._lists) > self._limit:
                self._lists.popitem(last=False)
            self._drop_old()

    def of(self, user: str) -> LastList | None:
        """The last list of a user; None where none is remembered."""
        with self._lock:
            self._drop_old()
            return self._lists.get(user)

    def drop(self, user: str) -> None:
        """Forget the list of a user."""
        with self._lock:
            self._lists.pop(user, None)

    def drop_deleted(self, numbers: Callable[[Sequence[str]], list[int]]) -> Iterator[None]:
        """Forget the lists of users without events, in bounded pieces.

        Args:
            numbers: gives the number of each user in the store, 0 for one without events.
        """
        users = self.users()
        for start in range(0, len(users), USERS_AT_ONCE):
            piece = users[start : start + USERS_AT_ONCE]
            for user, number in zip(piece, numbers(piece), strict=True):
                if not number:
                    self.drop(user)
            yield

    def users(self) -> list[str]:
        """Whose lists are remembered."""
        with self._lock:
            return list(self._lists)

    def _drop_old(self) -> None:
        oldest = self._now() - self._seconds
        while self._lists and next(iter(self._lists.values())).at < oldest:
            self._lists.popitem(last=False)
