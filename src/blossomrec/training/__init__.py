"""Training: the loop, its checkpoints and exact resumption, and the run folder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blossomrec.training.loop import TrainingResult, train
    from blossomrec.training.watch import TrainingInterrupted

# Imported when first used: reading a run folder needs neither Fabric nor the loop.
_HOMES = {
    "TrainingInterrupted": "blossomrec.training.watch",
    "TrainingResult": "blossomrec.training.loop",
    "train": "blossomrec.training.loop",
}
__all__ = ["TrainingInterrupted", "TrainingResult", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'blossomrec.training' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
