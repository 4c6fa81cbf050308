"""Work handed to a thread: a bounded queue that is emptied in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from blossomrec.serving.refusals import unavailable

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Many threads put, one takes.

    Args:
        name: what refusals call it.
        capacity: entries that may wait.
    """

    def __init__(self, name: str, capacity: int):
        self.name, self.capacity = name, capacity
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether it takes no more entries."""
        return self._closed

    def put(self, entry: T, *, always: bool = False) -> None:
        """Add an entry; ``always`` also where the queue is full.

        Raises:
            Refusal: 503, the queue is full or closed.
        """
        with self._changed:
            if self._closed:
                raise unavailable("stopping", "the server is stopping")
            if len(self._waiting) >= self.capacity and not always:
                message = f"{self.capacity} requests are waiting for the {self.name}"
                raise unavailable("overloaded", message)
            self._waiting.append(entry)
            self._changed.notify()

    def take(self, most: int, *, wait: float = 0.0, block: bool = True) -> list[T]:
        """Up to ``most`` entries, oldest first.

        Args:
            wait: seconds to wait for more after the first.
            block: wait for the first one. An empty list then means closed, and nothing left.
        """
        with self._changed:
            while block and not self._waiting and not self._closed:
                self._changed.wait()
            end = time.monotonic() + wait
            while 0 < len(self._waiting) < most and not self._closed:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def close(self) -> None:
        """Take no more entries; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
