"""Handing the result of work in a thread to whoever waits for it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any


def succeed(future: Future[Any], result: Any) -> None:
    """Set a result, unless the waiting was given up."""
    if future.set_running_or_notify_cancel():
        future.set_result(result)


def fail(future: Future[Any], error: BaseException) -> None:
    """Set an error, unless the waiting was given up."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
