"""Arrays that were costly to make, as many as fit into a budget of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

# Of the objects around the numbers, about.
OVERHEAD = 512


class KeptArrays:
    """An LRU cache of arrays; several threads may use it.

    Args:
        budget: most bytes of all arrays and of the texts among their keys; an array that alone
            needs more is not kept.

    Attributes:
        nbytes: bytes of what is kept.

    Example:
        >>> kept = KeptArrays(1 << 20)
        >>> kept.get("zeros", lambda: np.zeros(3))
        array([0., 0., 0.])
    """

    def __init__(self, budget: int):
        self.budget, self.nbytes = budget, 0
        self._kept: OrderedDict[Hashable, tuple[np.ndarray, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array that is kept under a key, which is now the last to leave, or a new one.

        What it gives is shared: nobody changes it.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        # Two threads may make the same one; nobody waits for the other.
        array = make()
        self._put(key, array)
        return array

    def _put(self, key: Hashable, array: np.ndarray) -> None:
        size = array.nbytes + _text_bytes(key) + OVERHEAD
        if size > self.budget:
            return
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._kept[key] = array, size
            self.nbytes += size - before
            while self.nbytes > self.budget:
                _, (_, freed) = self._kept.popitem(last=False)
                self.nbytes -= freed


def _text_bytes(key: Hashable) -> int:
    """Most that the texts of a key take."""
    if isinstance(key, tuple):
        return sum(map(_text_bytes, key))
    return 4 * len(key) if isinstance(key, str) else 0
