"""Losses on their way from the device to the host, without making the device wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.errors import TrainingError

# Steps between two read-backs from a GPU.
INTERVAL = 16


@dataclass(frozen=True)
class StepRecord:
    """What the host knows of a step when it is launched; ``targets`` counts predicted events."""

    epoch: int
    step: int
    learning_rate: float
    events: int
    targets: int


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
        self._interval = INTERVAL if self._cuda else 1
        self._pending: list[_Sent] = []
        self._travelling: _Group | None = None

    def push(self, record: StepRecord, values: dict[str, Tensor]) -> list[Reading]:
        """Add a step with its named scalars; gives the earlier steps that have come back.

        Raises:
            TrainingError: a value that came back is not finite.
        """
        self._pending.append((record, tuple(values), torch.stack(tuple(values.values()))))
        return self._exchange() if len(self._pending) >= self._interval else []

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
