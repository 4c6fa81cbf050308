"""Training losses over an item catalogue, none of which holds one logit per row and item.

Each takes ``hidden`` [M, D] (one row per prediction), ``weight`` [I, D] (one row per item),
``targets`` [M] (item rows) and, where rows do not count alike, ``row_weights`` [M]. It returns a
scalar mean that is differentiable in the first two. To ``cross_entropy`` a negative target is none:
its row counts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from blossomrec.config import TrainingConfig
from blossomrec.errors import ConfigError
from blossomrec.registry import LOSSES, lazily

if TYPE_CHECKING:
    from blossomrec.losses.sampled import SampledLoss, bpr, gbce, sampled_softmax
    from blossomrec.losses.sampling import NegativeSampler
    from blossomrec.losses.softmax import cross_entropy
    from blossomrec.ranks import Ranks

__all__ = [
    "LOSSES",
    "NegativeSampler",
    "SampledLoss",
    "TrainingLoss",
    "bpr",
    "build_loss",
    "cross_entropy",
    "gbce",
    "row_shares",
    "sampled_softmax",
    "weighted_mean",
]

_SAMPLED = ("SampledLoss", "bpr", "gbce", "sampled_softmax")
__getattr__ = lazily(
    __name__,
    {
        "cross_entropy": "blossomrec.losses.softmax",
        "NegativeSampler": "blossomrec.losses.sampling",
    }
    | dict.fromkeys(_SAMPLED, "blossomrec.losses.sampled"),
)


class TrainingLoss:
    """Base of the losses, with whatever state they have.

    Args:
        config: options of the training, those of the losses among them.
        item_counts: int64 [I], training events of each item of the catalogue.

    Attributes:
        captured: whether a step with this loss may be a CUDA graph: nothing is drawn or looked at
            on the host, and a row whose target is negative counts nothing.
        weighted: whether it takes ``row_weights``; a training whose targets do not count alike
            refuses a loss that does not.
        by_row: whether it has :meth:`rows`, which a model that mixes in the user's own items needs.
        sharded: whether it has :meth:`sharded_rows`, for a catalogue in parts.
        may_fuse: whether kernels of a GPU may be used; False asks for plain PyTorch.
    """

    captured: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    may_fuse: bool = True

    def __init__(self, config: TrainingConfig, item_counts: np.ndarray):
        self.config = config

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """A scalar mean, differentiable in ``hidden`` and ``weight``.

        Args:
            hidden: [M, D], one row for each prediction.
            weight: [I, D], one row for each item; M x I logits at a time would be too many.
            targets: int64 [M], item rows.
            row_weights: float32 [M], how much each prediction counts in the mean, 0 or more; given
                only where they differ. :func:`weighted_mean` takes them.
        """
        raise NotImplementedError

    def rows(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Negative logarithms of the probabilities of the targets in the whole catalogue, [M].

        Differentiable as the mean is; 0 where the target is negative.
        """
        raise NotImplementedError

    def sharded_rows(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, ranks: Ranks, **where: Any
    ) -> Tensor:
        """As :meth:`rows`, where each rank has a part of the catalogue; see
        :func:`blossomrec.losses.sharded.sharded_cross_entropy`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state_dict` goes on, such as how much was drawn."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""


def row_shares(row_weights: Tensor) -> Tensor:
    """Weights of rows [M] as shares of the largest, 0 to 1; zeros where all are zero.

    Multiplied by them, numbers of 16 bits do not overflow, however large or small the weights are.
    """
    if not len(row_weights):
        return row_weights
    top = row_weights.amax()
    # Never looked at: the answer would have to come from the device.
    return row_weights / torch.where(top > 0, top, 1.0)


def weighted_mean(losses: Tensor, row_weights: Tensor | None) -> Tensor:
    """Mean of the losses of rows [M], each counting as its weight says; None: all alike.

    It is 0 where every weight is 0, and where weights are given but no row.
    """
    if row_weights is None:
        return losses.mean()
    shares = row_shares(row_weights)
    # The largest share is 1, so that the sum is smaller only where nothing counts.
    return (losses * shares).sum() / shares.sum().clamp(min=1)


def build_loss(
    config: TrainingConfig, item_counts: np.ndarray, num_items: int, *, may_fuse: bool = True
) -> TrainingLoss:
    """The loss named by ``config.loss``.

    Args:
        config: which loss, how many negatives, the seed of their sampling.
        item_counts: [I] training events of each item.
        num_items: size of the catalogue.
        may_fuse: as the model says.

    Raises:
        ConfigError: the loss is unknown, or ``item_counts`` has another length than the catalogue.
    """
    if len(item_counts) != num_items:
        raise ConfigError(f"{len(item_counts)} item counts for {num_items} items")
    loss = LOSSES.get(config.loss)(config, item_counts)
    loss.may_fuse = may_fuse
    return loss
