"""Encoded histories within a budget of bytes; who was asked for longest ago leaves first."""

from __future__ import annotations

from collections import OrderedDict

from blossomrec.serving.history import UserHistory


class HistoryCache:
    """Histories by user. One thread uses it.

    Args:
        budget: most bytes; a history that alone needs more is not kept.

    Attributes:
        nbytes: bytes of all histories.
        evictions: how many had to leave.
    """

    def __init__(self, budget: int):
        self.budget, self.nbytes, self.evictions = budget, 0, 0
        self._told = 0
        self._kept: OrderedDict[str, tuple[UserHistory, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, user: str) -> bool:
        return user in self._kept

    def get(self, user: str) -> UserHistory | None:
        """The history of a user, which is now the last to leave."""
        if user not in self._kept:
            return None
        self._kept.move_to_end(user)
        return self._kept[user][0]

    def put(self, user: str, history: UserHistory) -> None:
        """Keep a history, new or grown; others leave to make room."""
        self.drop(user)
        size = history.nbytes
        self._kept[user] = history, size
        self.nbytes += size
        while self.nbytes > self.budget:
            self.evict()

    def evict(self) -> bool:
        """Let the first to leave go; False if nobody is left."""
        if not self._kept:
            return False
        self.drop(next(iter(self._kept)))
        self.evictions += 1
        return True

    def new_evictions(self) -> int:
        """How many had to leave since this was last asked."""
        new, self._told = self.evictions - self._told, self.evictions
        return new

    def put_behind(self, user: str, history: UserHistory) -> bool:
        """Keep a history as the first to leave; False, and not kept, where there is no room."""
        size = history.nbytes
        if user in self._kept or self.nbytes + size > self.budget:
            return user in self._kept
        self._kept[user] = history, size
        self._kept.move_to_end(user, last=False)
        self.nbytes += size
        return True

    def users(self) -> list[str]:
        """Users whose histories are kept, who was asked for last first."""
        return list(reversed(self._kept))

    def number(self, user: str) -> int:
        """Number of a user whose history is kept, who does not become the last to leave by it."""
        return self._kept[user][0].number

    def drop(self, user: str) -> None:
        """Forget a user."""
        _, size = self._kept.pop(user, (None, 0))
        self.nbytes -= size

    def clear(self) -> None:
        """Forget everybody."""
        self._kept.clear()
        self.nbytes = 0
