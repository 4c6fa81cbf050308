"""Training losses over an item catalogue, none of which holds one logit per row and item.

Each takes ``hidden`` [M, D] (one row per prediction), ``weight`` [I, D] (one row per item) and
``targets`` [M] (item rows), and returns a scalar mean that is differentiable in the first two. To
``cross_entropy`` a negative target is none: its row counts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import LOSSES, lazily

if TYPE_CHECKING:
    from blossomrec.losses.sampled import NegativeSampler, SampledLoss, bpr, gbce, sampled_softmax
    from blossomrec.losses.softmax import cross_entropy
    from blossomrec.losses.training_loss import TrainingLoss, build_loss

__all__ = [
    "LOSSES",
    "NegativeSampler",
    "SampledLoss",
    "TrainingLoss",
    "bpr",
    "build_loss",
    "cross_entropy",
    "gbce",
    "sampled_softmax",
]

__getattr__ = lazily(
    __name__,
    {
        "NegativeSampler": "blossomrec.losses.sampled",
        "SampledLoss": "blossomrec.losses.sampled",
        "TrainingLoss": "blossomrec.losses.training_loss",
        "bpr": "blossomrec.losses.sampled",
        "build_loss": "blossomrec.losses.training_loss",
        "cross_entropy": "blossomrec.losses.softmax",
        "gbce": "blossomrec.losses.sampled",
        "sampled_softmax": "blossomrec.losses.sampled",
    },
)
