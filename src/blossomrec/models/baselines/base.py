"""What a baseline is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batches import Batch
    from blossomrec.data.log import EventLog


class Baseline(nn.Module):
    """Base of the recommenders that are fitted on training events by counting; a ``Scorer``.

    Its tensors are buffers, so that they move between devices; nothing in them has a gradient.

    Attributes:
        num_items: size of the catalogue.
        max_len: how many of a history's last events are of use.
        own_items: recommends what stands in the history.
        most_items: largest catalogue for which it is measured unasked.
    """

    num_items: int
    max_len: int
    own_items: ClassVar[bool] = False
    most_items: ClassVar[float] = float("inf")

    @classmethod
    def fit(cls, log: EventLog, train_end: np.ndarray) -> Baseline:
        """Fit it on the first ``train_end`` [U] events of each user."""
        raise NotImplementedError

    @classmethod
    def suits(cls, log: EventLog, *, filter_seen: bool) -> bool:
        """Whether it is worth measuring beside others."""
        return log.num_items <= cls.most_items and not (cls.own_items and filter_seen)

    def queries(self, batch: Batch) -> Tensor:
        """What is to be known of each history: [B, ...], any shape after the first dimension."""
        raise NotImplementedError

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start], higher is better, of the items start .. stop-1."""
        raise NotImplementedError
