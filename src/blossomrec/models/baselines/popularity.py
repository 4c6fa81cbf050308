"""What is popular, the same for everyone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blossomrec.errors import ConfigError
from blossomrec.models.baselines.base import Baseline, training_events

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.data.log import EventLog


class Popularity(Baseline):
    """Scores every item by its number of training events, the same for everyone.

    Args:
        popularity: [I], a non-negative number for each item.
    """

    max_len = 1
    popularity: Tensor

    def __init__(self, popularity: np.ndarray):
        super().__init__()
        self.num_items = len(popularity)
        self.register_buffer("popularity", torch.as_tensor(popularity, dtype=torch.float32))

    @classmethod
    def fit(cls, log: EventLog, train_end: np.ndarray) -> Popularity:
        """Count the training events of each item."""
        items = np.asarray(log.items)[training_events(log, train_end)]
        return cls(np.bincount(items, minlength=log.num_items))

    def queries(self, batch: Batch) -> Tensor:
        """Nothing is to be known of a history: [B, 0]."""
        return batch.items.new_empty(batch.num_histories, 0)

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start]."""
        return self.popularity[start:stop].expand(len(queries), -1)


class RecentPopularity(Popularity):
    """Popularity in which an event counts half as much for every half-life that it is old."""

    @classmethod
    def fit(cls, log: EventLog, train_end: np.ndarray, *, half_life: float = 0.1) -> Popularity:
        """Sum the weights of the training events of each item.

        Args:
            log: the events.
            train_end: int64 [U].
            half_life: share of the time between the first and the last training event.

        Raises:
            ConfigError: ``half_life`` is not positive.
        """
        if not half_life > 0:
            raise ConfigError(f"half_life is {half_life}: it must be above 0")
        used = training_events(log, train_end)
        items, times = np.asarray(log.items)[used], np.asarray(log.timestamps)[used]
        # Subtracting first keeps large integer times exact.
        age = (times.max() - times).astype(np.float64)
        span = max(age.max(), np.finfo(np.float64).tiny)
        weights = np.exp2(-age / span / half_life)
        return cls(np.bincount(items, weights, minlength=log.num_items))
