"""What a training tells: losses from the device, ``log.jsonl``, trackers; and signals to it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from blossomrec.errors import TrainingError
from blossomrec.tracking.trackers import Trackers

# Steps between two read-backs from a GPU.
INTERVAL = 16


@dataclass(frozen=True)
class StepRecord:
    """What the host knows of a step when it is launched; its targets count ``targets`` together."""

    epoch: int
    step: int
    learning_rate: float
    events: int
    targets: float


@dataclass(frozen=True)
class Reading:
    """A step together with the values that came back from the device."""

    record: StepRecord
    values: dict[str, float]


# A step, the names of its values, the values on the device; and a group of steps on its way.
_Sent = tuple[StepRecord, tuple[str, ...], Tensor]
_Group = tuple[list[_Sent], Tensor, "torch.cuda.Event | None"]


class LossWatch:
    """Reads losses back in order and refuses those that are not finite.

    On a GPU, values travel in groups of ``INTERVAL`` steps, each group being read when the next
    one departs: the loop never waits for a step that is still running. ``flush`` waits, and is to
    be called before anything computed so far is trusted.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self.interval = INTERVAL if self._cuda else 1
        self._pending: list[_Sent] = []
        self._travelling: _Group | None = None

    def push(self, record: StepRecord, values: dict[str, Tensor]) -> list[Reading]:
        """Add a step with its named scalars; gives the earlier steps that have come back.

        Raises:
            TrainingError: a value that came back is not finite.
        """
        self._pending.append((record, tuple(values), torch.stack(tuple(values.values()))))
        return self._exchange() if len(self._pending) >= self.interval else []

    def flush(self) -> list[Reading]:
        """Wait for every step pushed so far; raises like ``push``."""
        return self._exchange() + self._exchange()

    def _exchange(self) -> list[Reading]:
        arrived, self._travelling = self._travelling, self._send()
        return _readings(*arrived) if arrived else []

    def _send(self) -> _Group | None:
        if not self._pending:
            return None
        steps, self._pending = self._pending, []
        values = torch.stack([sent[2] for sent in steps])
        if not self._cuda:
            return steps, values, None
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return steps, host, event


def _readings(steps: list[_Sent], values: Tensor, event: torch.cuda.Event | None) -> list[Reading]:
    if event is not None:
        event.synchronize()
    readings = []
    for (record, names, _), row in zip(steps, values.tolist(), strict=True):
        reading = Reading(record, dict(zip(names, row, strict=True)))
        _check_finite(reading)
        readings.append(reading)
    return readings


def _check_finite(reading: Reading) -> None:
    record = reading.record
    for name, value in reading.values.items():
        if not math.isfinite(value):
            # The loss that led to a bad gradient says how training went until then.
            loss = "" if name == "loss" else f", loss {reading.values['loss']:g}"
            raise TrainingError(
                f"{name} is {value} at epoch {record.epoch}, step {record.step}{loss}, "
                f"learning rate {record.learning_rate:g}"
            )


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

    Whoever enters looks at it from time to time. Where it came after the last look, leaving raises
    TrainingInterrupted, so that no signal is lost. A second signal has its usual effect again. One
    that is ignored, as nohup has it with SIGHUP, stays ignored. Outside of the main thread, where
    Python allows no handlers, nothing changes.
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

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._restore()
        if kind is None and self.received is not None:
            raise TrainingInterrupted(self.received)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}


class RunLog:
    """``log.jsonl``, a JSON object for each epoch, of which trackers are told as well.

    ``start`` cuts the file back to ``size`` bytes, those that the checkpoint knows of, so that an
    epoch that is trained again after a kill stands there once.
    """

    def __init__(self, run: Path, trackers: Trackers | None = None):
        self.path = run / "log.jsonl"
        self._trackers = trackers or Trackers(run)
        self._file: Any = None

    def start(self, size: int, step: int) -> None:
        """Open for appending after the first ``size`` bytes; ``step`` is the last one done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        if self.size < size:
            warnings.warn(
                f"{self.path} was cut short: lines of earlier epochs are lost", stacklevel=2
            )
        else:
            self._file.truncate(size)
        self._trackers.start(step, self._records())

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, record: dict[str, Any]) -> None:
        """Append one line, and tell the trackers."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._trackers.log(record)

    def _records(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_bytes().splitlines():
            # Of a file that was cut short the last one may be half a line.
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class NoLog(RunLog):
    """The log of a rank that does not write it."""

    def __init__(self) -> None:
        """There is no file."""

    @property
    def size(self) -> int:
        return 0

    def start(self, size: int, step: int) -> None:
        """Write nothing, as all of it."""

    def write(self, record: dict[str, Any]) -> None:
        """Nobody reads it here."""

    def close(self) -> None:
        """Nothing is open."""
