"""Work handed to a thread: queues emptied in batches, results, and work that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

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

    def take(self, limit: int, *, wait: float = 0.0, block: bool = True) -> list[T]:
        """Up to ``limit`` entries, oldest first.

        Args:
            wait: seconds to wait for more after the first.
            block: wait for the first one. An empty list then means closed, and nothing left.
        """
        with self._changed:
            while block and not self._waiting and not self._closed:
                self._changed.wait()
            end = time.monotonic() + wait
            while 0 < len(self._waiting) < limit and not self._closed:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def close(self) -> None:
        """Take no more entries; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def succeed(future: Future[Any], result: Any) -> None:
    """Set a result, unless the waiting was given up."""
    if future.set_running_or_notify_cancel():
        future.set_result(result)


def fail(future: Future[Any], error: BaseException) -> None:
    """Set an error, unless the waiting was given up."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


# Pauses between two pieces while there is other work, in lengths of the last piece.
PAUSES = 9

logger = logging.getLogger("blossomrec.serving")


class Background:
    """Iterators whose every step is a piece of work, one after the other. One thread uses it."""

    def __init__(self) -> None:
        self._work: deque[tuple[Iterator[None], Future[None]]] = deque()
        self._next = 0.0

    def __len__(self) -> int:
        return len(self._work)

    @property
    def due(self) -> bool:
        """Whether a piece should be done although there is other work."""
        return bool(self._work) and time.monotonic() >= self._next

    def add(self, work: Iterator[None], done: Future[None] | None = None) -> None:
        """Put work behind the other; ``done`` has a result when it has ended, however."""
        self._work.append((work, done or Future()))

    def clear(self) -> None:
        """Give all of it up."""
        while self._work:
            succeed(self._work.popleft()[1], None)

    def step(self) -> None:
        """The next piece."""
        (work, done), start = self._work[0], time.monotonic()
        try:
            next(work)
        except Exception as error:
            if not isinstance(error, StopIteration):
                logger.exception("work in the background was given up")
            self._work.popleft()
            succeed(done, None)
        end = time.monotonic()
        self._next = end + PAUSES * (end - start)


async def answered(future: Future[T], seconds: float) -> T:
    """What a thread makes of a future.

    Raises:
        Refusal: 503, it takes longer than so many seconds.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError as error:
        message = f"no answer within {seconds:g} s; it may still be carried out"
        raise unavailable("timeout", message) from error
