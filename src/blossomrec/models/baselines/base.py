"""What simple baselines share, and popularity, the simplest."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from blossomrec.data.history import ITEMS_ALONE
from blossomrec.data.windows import each_once
from blossomrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batch import Batch
    from blossomrec.data.log import EventLog


class Baseline(nn.Module):
    """Base of the recommenders that are fitted on training events by counting; a ``Scorer``.

    Its tensors are buffers, so that they move between devices; nothing in them has a gradient.

    Attributes:
        num_items: size of the catalogue.
        max_len: how many of a history's last events are of use.
        inputs: what of the events it takes, names of the arrays of a :class:`History`.
        own_items: recommends what stands in the history.
        most_items: largest catalogue for which it is measured unasked.
    """

    num_items: int
    max_len: int
    inputs: tuple[str, ...] = ITEMS_ALONE
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


def training_events(log: EventLog, train_end: np.ndarray) -> np.ndarray:
    """Which events of the log may be trained on, bool [E].

    Raises:
        DataError: there are none.
    """
    offsets = np.asarray(log.offsets)
    lengths = np.diff(offsets)
    position = np.arange(len(log.items)) - np.repeat(offsets[:-1], lengths)
    used = position < np.repeat(np.asarray(train_end), lengths)
    if not used.any():
        raise DataError(f"{log.folder} has no events to train on")
    return used


def users_by_items(log: EventLog, train_end: np.ndarray) -> scipy.sparse.csr_array:
    """Who met what among the training events, ones in a sparse float64 [U, I]."""
    used = training_events(log, train_end)
    users = np.repeat(np.arange(log.num_users), np.diff(log.offsets))[used]
    met = each_once(users * log.num_items + np.asarray(log.items)[used])
    parts = np.ones(len(met)), (met // log.num_items, met % log.num_items)
    return scipy.sparse.csr_array(parts, shape=(log.num_users, log.num_items))


def keep_largest(matrix: scipy.sparse.csr_array, count: int) -> scipy.sparse.csr_array:
    """Only the ``count`` largest entries of each row; of equal ones those of lower columns."""
    starts = np.asarray(matrix.indptr)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((matrix.indices, np.negative(matrix.data), rows))
    # Sorting by row first leaves each row where it was, so its entries are ranked from its start.
    rank = np.arange(len(rows)) - starts[rows]
    kept = order[rank < count]
    parts = matrix.data[kept], (rows[kept], matrix.indices[kept])
    return scipy.sparse.csr_array(parts, shape=matrix.shape)


class DistinctItems:
    """Every (history, item) of a batch once, N of them, by history, then item.

    Attributes:
        history: number of the history, int64 [N].
        item: int64 [N].
        event: which of the N each event of the batch belongs to, int64 [T].
        age: events of the history after each event, int64 [T].
    """

    def __init__(self, batch: Batch, num_items: int):
        ends = batch.cu_seqlens.long()
        lengths = ends.diff()
        of = torch.arange(len(lengths), device=ends.device).repeat_interleave(lengths)
        self.age = ends[1:][of] - 1 - torch.arange(len(of), device=ends.device)
        keys, self.event = torch.unique(of * num_items + batch.items, return_inverse=True)
        self.history, self.item = keys // num_items, keys % num_items
        self.histories = len(lengths)

    def table(self, width: int, *columns: Tensor) -> Tensor:
        """Columns [N] as int32 [histories, width, len(columns)], -1 behind a history's items."""
        counts = self.history.bincount(minlength=self.histories)
        place = torch.arange(len(self.history), device=self.history.device)
        place -= (counts.cumsum(0) - counts)[self.history]
        table = counts.new_full((self.histories, width, len(columns)), -1, dtype=torch.int32)
        table[self.history, place] = torch.stack(columns, 1).int()
        return table


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


# Share of the time span of a log after which an event counts half.
HALF_LIFE = 0.1


class RecentPopularity(Popularity):
    """Popularity in which an event counts half as much for every half-life that it is old."""

    @classmethod
    def fit(
        cls, log: EventLog, train_end: np.ndarray, *, half_life: float = HALF_LIFE
    ) -> Popularity:
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
        weights = recent_weights(times, times.min(), times.max(), half_life)
        return cls(np.bincount(items, weights, minlength=log.num_items))


def recent_weights(
    times: np.ndarray, first: float, last: float, half_life: float = HALF_LIFE
) -> np.ndarray:
    """What events count, the one at ``last`` 1, half as much for every half-life before: [N].

    Args:
        times: [N], from ``first`` to ``last``.
        half_life: share of the time between the two.
    """
    span = max(float(last - first), np.finfo(np.float64).tiny)
    # Subtracting first keeps large integer times exact.
    return np.exp2(-(last - times).astype(np.float64) / span / half_life)
