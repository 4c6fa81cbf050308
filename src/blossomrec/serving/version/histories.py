"""Histories in memory: items, encodings, and the cache that holds them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from blossomrec.data.history import ITEMS_ALONE, GrowingHistory, History

# Of the objects around the numbers, about.
OVERHEAD = 2_048


def window_start(length: int, max_len: int, step: int) -> int:
    """Position of the first event that the model sees of a history of ``length`` events.

    With a ``step`` of 1 the last ``max_len`` events are seen, as by ``recommend``. With a longer
    one the window moves by ``step`` events at a time and is up to ``step - 1`` events shorter than
    ``max_len``: between two moves a kept state can be extended.
    """
    over = length - max_len
    return 0 if over <= 0 else -(-over // step) * step


class KeptState(Protocol):
    """What an encoder keeps of a history, to go on from."""

    @property
    def nbytes(self) -> int: ...


class UserHistory:
    """A user's events as item rows of one model version, and their encoding by its weights.

    Args:
        number: of the user in the store; 0 for a history that comes with its request.
        inputs: what of the events the model takes.

    Attributes:
        number, inputs: as given.
        read: events read from the store, those of items that the model does not know included.
        seen: rows of the items in the history, int64, rising, each once.
        state: of the events ``start`` .. ``encoded - 1``, as the encoder keeps it; None where it
            keeps none.
        query: [1, D], what the next item is scored from after those events; None before.
    """

    def __init__(self, number: int = 0, inputs: Sequence[str] = ITEMS_ALONE):
        self.number, self.read, self.inputs = number, 0, inputs
        self._events = GrowingHistory(inputs)
        self.seen = np.empty(0, np.int64)
        self.state: KeptState | None = None
        self.query: Tensor | None = None
        self.start = self.encoded = 0

    @property
    def events(self) -> History:
        """The known events, oldest first: item rows of the version, int32, and what it takes."""
        return self._events.events

    def __len__(self) -> int:
        return self._events.length

    def next_event(self) -> tuple[Any, ...]:
        """The first event yet to be encoded, in the order of ``inputs``: numbers, and its context
        as bytes.

        Where times are among them, that of the event before it follows, -1 if there is none.
        """
        index, event = self.encoded, self._events.at(self.encoded)
        if "times" not in self.inputs:
            return event
        return (*event, self._events.number("times", index - 1) if index > self.start else -1)

    def add(self, events: History, read: int) -> None:
        """Put events behind the others; ``read`` counts those too whose items are unknown."""
        self._events.extend(events)
        self.read += read
        rows = events.items
        # A search in what is sorted: one more event does not go through the whole history.
        position = np.searchsorted(self.seen, rows)
        known = position < len(self.seen)
        known[known] = self.seen[position[known]] == rows[known]
        if not known.all():
            self.seen = np.union1d(self.seen, rows[~known])

    def missing(self, max_len: int, step: int) -> int:
        """Events yet to be encoded; what was encoded is dropped if the window has moved."""
        # Asked several times a request: a window that never moved takes no further call.
        length = self._events.length
        start = window_start(length, max_len, step) if length > max_len else 0
        if start != self.start:
            self.forget_encoding(start)
        return length - self.encoded

    def forget_encoding(self, start: int) -> None:
        """Begin anew at an event."""
        self.state = self.query = None
        self.start = self.encoded = start

    def moments(self, at: int) -> tuple[int, int]:
        """What a model is told of a request at a second: the time since the last event, and it.

        Negative is what is not known.
        """
        times = self._events.events.times
        last = -1 if times is None else int(times[-1])
        return (max(at - last, 0) if min(at, last) >= 0 else -1), at

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        tensors = (0 if one is None else one.nbytes for one in (self.state, self.query))
        return OVERHEAD + self._events.nbytes + self.seen.nbytes + sum(tensors)


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
