"""Updates one after another, so often, until a signal ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from blossomrec.errors import BlossomRecError
from blossomrec.training import TrainingInterrupted
from blossomrec.updating.runs import Runs

# After an update that could not be carried out, such as since the store was away.
AGAIN_SECONDS = 600.0
PASSING = (BlossomRecError, OSError)


class Ended(BaseException):
    """A signal has come; as a kill, it may come anywhere."""


def repeat(
    runs: Runs, every: float, once: Callable[[], Any], tell: Callable[[str], None] = print
) -> None:
    """Carry out updates until SIGTERM or SIGINT.

    The next one begins so long after the last one began, also where the process was started anew,
    or at once where one was broken off. What goes wrong is told, and tried again later.

    Args:
        every: seconds.
        once: an update.
    """
    previous = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            _sleep(_due(runs, every) - time.time(), tell)
            try:
                once()
            except PASSING as error:
                tell(f"the update could not be carried out: {error}")
                _sleep(min(every, AGAIN_SECONDS), tell)
    except Ended:
        tell("ended")
    except TrainingInterrupted as stop:
        tell(f"{stop}: the next start goes on with it")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended


def _due(runs: Runs, every: float) -> float:
    """When the next update is to begin, in seconds since 1970."""
    if runs.pending() is not None:
        return 0.0
    began = [line["started"] for line in runs.history() if "rolled_back" not in line]
    return began[-1] + every if began else 0.0


def _sleep(seconds: float, tell: Callable[[str], None]) -> None:
    if seconds > 0:
        tell(f"the next update is in {seconds:,.0f} s")
        threading.Event().wait(seconds)
