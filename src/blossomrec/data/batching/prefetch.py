"""Elements of an iterator, made ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class _End:
    """Last entry of the queue; ``error`` is what stopped the source, if anything did."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


def prefetch(source: Iterator[T], depth: int = 2) -> Generator[T]:
    """The elements of ``source``, up to ``depth`` of them made ahead by a thread.

    An exception of the source is raised here, in place of the element that failed. Closing the
    iterator (also by leaving a ``for`` loop over the only reference to it) ends the thread.
    """
    ahead: queue.Queue[Any] = queue.Queue(maxsize=depth)
    closed = threading.Event()
    thread = threading.Thread(
        target=_produce, args=(source, ahead, closed), name="prefetch", daemon=True
    )
    thread.start()
    try:
        while not isinstance(entry := ahead.get(), _End):
            yield entry
        if entry.error is not None:
            raise entry.error
    finally:
        closed.set()
        while thread.is_alive():
            # Whatever the thread still puts has room, so that it comes to its end.
            _drain(ahead)
            thread.join(0.01)


def _produce(source: Iterator[T], ahead: queue.Queue[Any], closed: threading.Event) -> None:
    end = _End()
    try:
        for element in source:
            ahead.put(element)
            if closed.is_set():
                # The consumer has emptied the queue and reads no end.
                return
    except BaseException as error:
        end = _End(error)
    ahead.put(end)


def _drain(ahead: queue.Queue[Any]) -> None:
    while True:
        try:
            ahead.get_nowait()
        except queue.Empty:
            return
