"""Work that nobody waits for, in pieces between those that somebody does."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

from blossomrec.serving import outcome

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
            outcome.succeed(self._work.popleft()[1], None)

    def step(self) -> None:
        """The next piece."""
        (work, done), start = self._work[0], time.monotonic()
        try:
            next(work)
        except Exception as error:
            if not isinstance(error, StopIteration):
                logger.exception("work in the background was given up")
            self._work.popleft()
            outcome.succeed(done, None)
        end = time.monotonic()
        self._next = end + PAUSES * (end - start)
