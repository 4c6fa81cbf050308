"""A log that clients can't fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

SECONDS = 60.0
MOST_KNOWN = 1_000


class Repeats(logging.Filter):
    """Lets a warning or an error through once a minute, and says how many like it were held back.

    It is for loggers whose entries others than this program can cause at will.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        super().__init__()
        self._now = now
        # When an entry came through, and how many like it have not since then.
        self._known: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now, text = self._now(), str(record.msg)
        last, held = self._known.get(text, (-SECONDS, 0))
        if now - last < SECONDS:
            self._known[text] = (last, held + 1)
            return False
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[text] = (now, 0)
        if held:
            record.msg = f"{text} ({held} more like it since the last one)"
        return True
