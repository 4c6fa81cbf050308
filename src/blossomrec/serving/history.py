"""What the server keeps in memory of one user: items, and the encoded history."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

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

    Attributes:
        number: of the user in the store; 0 for a history that comes with its request.
        read: events read from the store, those of items that the model does not know included.
        seen: rows of the items in the history, int64, rising, each once.
        state: of the events ``start`` .. ``encoded - 1``, as the encoder keeps it; None where it
            keeps none.
        query: [1, D], what the next item is scored from after those events; None before.
    """

    def __init__(self, number: int = 0):
        self.number, self.read = number, 0
        self._rows, self._length = np.empty(16, np.int32), 0
        self.seen = np.empty(0, np.int64)
        self.state: KeptState | None = None
        self.query: Tensor | None = None
        self.start = self.encoded = 0

    @property
    def rows(self) -> np.ndarray:
        """Item rows of the known events, oldest first, int32."""
        return self._rows[: self._length]

    def add(self, rows: np.ndarray, read: int) -> None:
        """Put events behind the others; ``read`` counts those too whose items are unknown."""
        end = self._length + len(rows)
        if end > len(self._rows):
            grown = np.empty(max(end, len(self._rows) * 3 // 2), np.int32)
            grown[: self._length] = self.rows
            self._rows = grown
        self._rows[self._length : end] = rows
        self._length, self.read = end, self.read + read
        # A search in what is sorted: one more event does not go through the whole history.
        place = np.searchsorted(self.seen, rows)
        known = place < len(self.seen)
        known[known] = self.seen[place[known]] == rows[known]
        if not known.all():
            self.seen = np.union1d(self.seen, rows[~known])

    def missing(self, max_len: int, step: int) -> int:
        """Events yet to be encoded; what was encoded is dropped if the window has moved."""
        # Asked several times a request: a window that never moved takes no further call.
        start = window_start(self._length, max_len, step) if self._length > max_len else 0
        if start != self.start:
            self.forget_encoding(start)
        return self._length - self.encoded

    def forget_encoding(self, start: int) -> None:
        """Begin anew at an event."""
        self.state = self.query = None
        self.start = self.encoded = start

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        tensors = (0 if one is None else one.nbytes for one in (self.state, self.query))
        return OVERHEAD + self._rows.nbytes + self.seen.nbytes + sum(tensors)
