"""Ctrl-C, SIGTERM and SIGHUP during training: noted, so that the loop can save before it stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# Not every system knows all of them.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was told to stop, and a checkpoint was saved.

    ``signum`` is the signal received, ``command`` the command line that goes on, where known.
    """

    def __init__(self, signum: int, command: str = ""):
        super().__init__(f"training stopped by {signal.Signals(signum).name}, checkpoint saved")
        self.signum, self.command = signum, command


class Interrupts:
    """While entered, ``received`` holds the first of SIGNALS instead of its usual effect.

    A second signal has its usual effect again. One that is ignored, as nohup has it with SIGHUP,
    stays ignored. Outside of the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}
