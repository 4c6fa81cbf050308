"""The thread that changes the store: many requests, one transaction, one write to the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from blossomrec.serving import outcome
from blossomrec.serving.mailbox import Mailbox
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import of_store
from blossomrec.serving.store import EventStore

# Requests in one transaction.
TOGETHER = 256


class _Change(NamedTuple):
    operation: Callable[[EventStore], Any]
    erase: bool
    future: Future[Any]


class Committer:
    """Runs operations on a store, in order; a result is given once it is on disk.

    Args:
        store: used by this thread alone, and closed by it.
        capacity: operations that may wait.
    """

    def __init__(self, store: EventStore, capacity: int, metrics: Metrics):
        self._store, self._metrics = store, metrics
        self._changes: Mailbox[_Change] = Mailbox("store", capacity)
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[EventStore], Any], *, erase: bool = False) -> Future[Any]:
        """What ``operation(store)`` gives; ``erase`` follows it when it deletes.

        Raises:
            Refusal: 503, too many wait. The future has the refusals of the operation.
        """
        change = _Change(operation, erase, Future())
        self._changes.put(change)
        self._metrics.queue.labels("store").set(len(self._changes))
        return change.future

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Do what waits, then close the store."""
        self._changes.close()
        self._thread.join()

    def _run(self) -> None:
        while changes := self._changes.take(TOGETHER):
            wanted = [change for change in changes if not change.future.cancelled()]
            try:
                self._commit(wanted)
            except Exception as error:
                for change in wanted:
                    if not change.future.done():
                        outcome.fail(change.future, of_store(error))
        self._store.close()

    def _commit(self, changes: list[_Change]) -> None:
        start, outcomes = time.perf_counter(), []
        with self._store.transaction():
            for change in changes:
                outcomes.append(self._attempt(change))
        self._metrics.commit_seconds.observe(time.perf_counter() - start)
        for change, (report, result) in zip(changes, outcomes, strict=True):
            if not change.erase:
                report(change.future, result)
        # The events are gone before the traces of them are looked for.
        for change, (report, result) in zip(changes, outcomes, strict=True):
            if change.erase:
                self._store.erase()
                report(change.future, result)

    def _attempt(self, change: _Change) -> tuple[Callable[[Future[Any], Any], None], Any]:
        try:
            with self._store.attempt():
                return outcome.succeed, change.operation(self._store)
        except Exception as error:
            return outcome.fail, of_store(error)
