"""What a tracker is told, in a thread of its own, and what it is known to have been told."""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blossomrec.errors import shortened
from blossomrec.files import read_json, write_json
from blossomrec.tracking.tracker import Tracker

# Seconds that a tracker has at the end to take what it was not told yet.
LAST_SECONDS = 60.0

# What of the place of a training is remembered.
PLACE = ("name", "group", "folder")


@dataclass(frozen=True)
class Told:
    """What a run folder remembers of one tracker, in ``tracking/NAME.json``.

    Attributes:
        identity: of the run in the tracker.
        step: the last one whose metrics it has.
        training: digest of what is trained, on what.
        place: name, group and folder, which is relative to the run folder.
    """

    identity: str
    step: int
    training: str
    place: dict[str, str]

    def __post_init__(self) -> None:
        if not isinstance(self.place, dict):
            raise ValueError(f"place is {shortened(self.place)}")
        for name in PLACE:
            if not isinstance(self.place.get(name), str):
                raise ValueError(f"{name} of place is {shortened(self.place.get(name))}")


def told_path(run: Path, name: str) -> Path:
    """The file that says what the tracker ``name`` was told of a run."""
    return run / "tracking" / f"{name}.json"


def read_told(path: Path) -> Told | None:
    """What a tracker was told; None where it was told nothing, or with a warning where the file is
    damaged."""
    if not path.is_file():
        return None
    try:
        return Told(**read_json(path))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged: {error}; what it tells is not known", stacklevel=2)
        return None


class Delivery:
    """Tells one tracker, in order, without anybody waiting for it.

    What fails stays first in the queue and is tried again when more is to be told, and at the end.

    Attributes:
        failure: what went wrong first; None where nothing did.
    """

    def __init__(self, name: str, tracker: Tracker):
        self.name, self.tracker = name, tracker
        self.failure: Exception | None = None
        self._given: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._step, self._path = 0, Path()
        self._told: dict[str, Any] = {}

    def start(self, path: Path, known: Told | None, training: str, place: dict[str, str]) -> None:
        """Begin a run, or go on with the one that is ``known``."""
        self._path = path
        self._told = {"training": training, "place": place}
        self._thread.start()
        self.ask(lambda: self._start(known))

    def _start(self, known: Told | None) -> None:
        before, step = (None, 0) if known is None else (known.identity, known.step)
        identity = self.tracker.start(before, step)
        self._step = step if identity == before else 0
        self._told["identity"] = identity
        self._remember()

    def ask(self, task: Callable[[], None]) -> None:
        """Have the thread do something, after what it was asked before."""
        self._given.put(task)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Tell metrics of a step, unless the tracker has them."""

        def tell() -> None:
            if step > self._step:
                self.tracker.log_metrics(metrics, step)
                self._step = step
                self._remember()

        self.ask(tell)

    def finish(self) -> None:
        """Wait until everything is told, but no longer than ``LAST_SECONDS``."""
        self._given.put(None)
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive() and self.failure is None:
            self.failure = TimeoutError(f"no answer in {LAST_SECONDS:g} s")

    def _remember(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {**self._told, "step": self._step})

    def _work(self) -> None:
        waiting: deque[Callable[[], None]] = deque()
        ended = False
        while not ended:
            given = [self._given.get()]
            # Where a server is away, all that came meanwhile is one try.
            while not self._given.empty():
                given.append(self._given.get())
            ended = given[-1] is None
            waiting.extend(task for task in given if task is not None)
            self._tell(waiting)
        self._tell(waiting)

    def _tell(self, waiting: deque[Callable[[], None]]) -> None:
        try:
            while waiting:
                waiting[0]()
                waiting.popleft()
        # A tracker may raise anything, and none of it is a reason to lose a training.
        except Exception as error:
            self.failure = self.failure or error
