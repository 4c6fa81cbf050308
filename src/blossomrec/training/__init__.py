"""Training: the loop, its checkpoints and exact resumption, and the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import lazily

if TYPE_CHECKING:
    from blossomrec.training.loop import TrainingResult, train
    from blossomrec.training.watch import TrainingInterrupted

__all__ = ["TrainingInterrupted", "TrainingResult", "train"]

# Imported when first used: reading a run folder needs neither Fabric nor the loop.
__getattr__ = lazily(
    __name__,
    {
        "TrainingInterrupted": "blossomrec.training.watch",
        "TrainingResult": "blossomrec.training.loop",
        "train": "blossomrec.training.loop",
    },
)
