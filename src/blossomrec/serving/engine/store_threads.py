"""The threads of the store: one changes it, in a transaction for many requests; one reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from blossomrec.serving.engine.work import Mailbox, fail, succeed
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import of_store
from blossomrec.serving.stores.store import EventStore, carried_out

# Requests in one transaction.
CHANGES_TOGETHER = 256


class _Change(NamedTuple):
    operation: Callable[[EventStore], Any]
    erase: bool
    future: Future[Any]


class _Report(NamedTuple):
    """What came of a change: ``give`` hands it to whoever waits."""

    give: Callable[[Future[Any], Any], None]
    future: Future[Any]
    result: Any

    def __call__(self) -> None:
        self.give(self.future, self.result)


class _Deletion(NamedTuple):
    """A report that is held back until traces are gone, and how many deletions the store counts."""

    report: _Report
    count: int | None


class Committer:
    """Runs operations on a store, in order; a result is given once it is on disk.

    Args:
        store: used by this thread alone, and closed by it.
        capacity: operations that may wait.
    """

    def __init__(self, store: EventStore, capacity: int, metrics: Metrics):
        self._store, self._metrics = store, metrics
        self._changes: Mailbox[_Change] = Mailbox("store", capacity)
        metrics.queue.labels("store").set_function(self._changes.__len__)
        self._deleted: Mailbox[_Deletion] = Mailbox("eraser", capacity)
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._eraser = threading.Thread(target=self._erase, name="eraser", daemon=True)
        self._thread.start()
        self._eraser.start()

    def submit(self, operation: Callable[[EventStore], Any], *, erase: bool = False) -> Future[Any]:
        """What ``operation(store)`` gives; ``erase`` follows it when it deletes.

        Raises:
            Refusal: 503, too many wait. The future has the refusals of the operation.
        """
        change = _Change(operation, erase, Future())
        self._changes.put(change)
        return change.future

    @property
    def alive(self) -> bool:
        """Whether the threads run."""
        return self._thread.is_alive() and self._eraser.is_alive()

    def close(self) -> None:
        """Do what waits, then close the store."""
        self._changes.close()
        self._thread.join()
        self._deleted.close()
        self._eraser.join()
        self._store.close()

    def _run(self) -> None:
        while changes := self._changes.take(CHANGES_TOGETHER):
            try:
                self._commit(changes)
            except Exception as error:
                refusal = of_store(error, self._store)
                for change in changes:
                    # It may have been carried out, with the answer lost.
                    self._hand(change, _Report(fail, change.future, refusal), None)

    def _commit(self, changes: list[_Change]) -> None:
        start = time.perf_counter()
        reports = carried_out(self._store, lambda: [self._attempt(change) for change in changes])
        self._metrics.commit_seconds.observe(time.perf_counter() - start)
        count = self._deletions() if any(change.erase for change in changes) else None
        for change, report in zip(changes, reports, strict=True):
            self._hand(change, report, count)

    def _deletions(self) -> int | None:
        try:
            return self._store.notices().deletions
        except self._store.failures:
            return None

    def _hand(self, change: _Change, report: _Report, count: int | None) -> None:
        if change.erase:
            self._deleted.put(_Deletion(report, count), always=True)
        else:
            report()

    def _attempt(self, change: _Change) -> _Report:
        if change.future.cancelled():
            return _Report(succeed, change.future, None)
        try:
            with self._store.attempt():
                return _Report(succeed, change.future, change.operation(self._store))
        except Exception as error:
            return _Report(fail, change.future, of_store(error, self._store))

    def _erase(self) -> None:
        """Once for all deletions that wait: events are gone before their traces are looked for."""
        # It can take long: not for users who were not there, unless somebody was deleted since the
        # last time by another process, which may have failed to. How many there had been then:
        erased: int | None = None
        while deletions := self._deleted.take(CHANGES_TOGETHER):
            reports = [each.report for each in deletions]
            counts = {each.count for each in deletions}
            try:
                found = any(report.result for report in reports)
                if found or erased is None or counts != {erased}:
                    erased = None
                    self._store.erase()
                    erased = deletions[-1].count
            except Exception as error:
                refusal = of_store(error, self._store)
                reports = [report._replace(give=fail, result=refusal) for report in reports]
            for report in reports:
                report()


READS_TOGETHER = 16


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
        while reads := self._asked.take(READS_TOGETHER):
            for read in reads:
                self._answer(read)

    def _answer(self, read: _Read) -> None:
        if read.future.cancelled():
            return
        try:
            succeed(read.future, read.operation(self._store))
        except Exception as error:
            fail(read.future, of_store(error, self._store))
