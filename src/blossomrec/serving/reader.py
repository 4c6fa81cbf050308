"""The thread that reads in the store for people: it waits for nobody who writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from blossomrec.serving import outcome
from blossomrec.serving.mailbox import Mailbox
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import of_store
from blossomrec.serving.store import EventStore

TOGETHER = 16


class _Read(NamedTuple):
    operation: Callable[[EventStore], Any]
    future: Future[Any]


class Reader:
    """Runs operations that change nothing, in order; what was acknowledged before, they see.

    Args:
        store: used by this thread alone, and closed by it.
        capacity: operations that may wait.
    """

    def __init__(self, store: EventStore, capacity: int, metrics: Metrics):
        self._store = store
        self._asked: Mailbox[_Read] = Mailbox("reader", capacity)
        metrics.queue.labels("reader").set_function(self._asked.__len__)
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[EventStore], Any]) -> Future[Any]:
        """What ``operation(store)`` gives.

        Raises:
            Refusal: 503, too many wait. The future has the refusals of the operation.
        """
        read = _Read(operation, Future())
        self._asked.put(read)
        return read.future

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Do what waits, then close the store."""
        self._asked.close()
        self._thread.join()
        self._store.close()

    def _run(self) -> None:
        while reads := self._asked.take(TOGETHER):
            for read in reads:
                self._answer(read)

    def _answer(self, read: _Read) -> None:
        if read.future.cancelled():
            return
        try:
            outcome.succeed(read.future, read.operation(self._store))
        except Exception as error:
            outcome.fail(read.future, of_store(error, self._store))
