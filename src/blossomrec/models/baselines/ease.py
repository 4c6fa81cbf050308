"""EASE: a linear model of the whole catalogue, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from blossomrec.errors import ConfigError, DataError
from blossomrec.models.baselines.base import Baseline, DistinctItems, users_by_items

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.data.log import EventLog

# A dense matrix of float64 is inverted: 3.2 GB at this size, and its factor beside it.
MOST_ITEMS = 20_000
# Largest for which it is fitted unasked: beyond, it takes minutes and gigabytes.
UNASKED_ITEMS = 5_000


class Ease(Baseline):
    """Scores an item by the sum of its weights from all items of the history (Steck, 2019).

    The weights are those with which each item is best predicted, in squares, by the other items
    that the same user met. The order of a history and how often an item occurs play no part.

    Args:
        weights: float32 [I, I], from an item of the history (row) to the item that is scored.
        longest: last events of a history that are used.
    """

    weights: Tensor
    most_items = UNASKED_ITEMS

    def __init__(self, weights: Tensor, *, longest: int):
        super().__init__()
        self.num_items, self.max_len = len(weights), longest
        self.register_buffer("weights", weights)

    @classmethod
    def fit(cls, log: EventLog, train_end: np.ndarray, *, ridge: float = 100.0) -> Ease:
        """Solve for the weights.

        Args:
            log: the events.
            train_end: int64 [U].
            ridge: lambda of the paper, what each item's own count is raised by; small logs need
                more of it.

        Raises:
            ConfigError: ``ridge`` is not positive.
            DataError: the catalogue is too large for a dense matrix.
        """
        if not ridge > 0:
            raise ConfigError(f"ridge is {ridge}: it must be above 0")
        if log.num_items > MOST_ITEMS:
            raise DataError(
                f"{log.folder} has {log.num_items:,} items: ease inverts a dense matrix of the "
                f"catalogue and takes at most {MOST_ITEMS:,}; item-knn takes more"
            )
        met = users_by_items(log, train_end)
        gram = torch.from_numpy((met.T @ met).toarray())
        gram.diagonal().add_(ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        inverse /= -inverse.diagonal().clone()
        inverse.fill_diagonal_(0)
        return cls(inverse.float(), longest=int(np.diff(log.offsets).max()))

    def queries(self, batch: Batch) -> Tensor:
        """The distinct items of each history, int32 [B, most]; -1 where there are fewer."""
        distinct = DistinctItems(batch, self.num_items)
        return distinct.table(min(self.max_len, self.num_items), distinct.item).squeeze(2)

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start]."""
        met = queries >= 0
        counts = met.sum(1)
        return nn.functional.embedding_bag(
            queries[met].long(),
            self.weights[:, start:stop],
            counts.cumsum(0) - counts,
            mode="sum",
        )
