"""Recommenders without training: what a model has to beat.

They are fitted on the training events of a log: ``train_end`` [U] is the number of each user's
first events that may be used. Their tensors are buffers, so that they move between devices and are
saved as a model's weights are; nothing in them has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from blossomrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from blossomrec.data.batches import Batch
    from blossomrec.data.log import EventLog


class Popularity(nn.Module):
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
        return batch.items.new_empty(len(batch.cu_seqlens) - 1, 0)

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


class ItemTransitions(nn.Module):
    """Scores an item by how often it followed a history's last items.

    A pair of training events of one user at distance 1 .. ``window`` counts 1 / distance; the
    counts of what follows an item are made shares of their sum. A history's last event adds these
    shares in full, each earlier one ``decay`` times as much as the next. Items that none of them
    leads to are ordered by popularity, below all others.

    Args:
        transitions: sparse [I, I], from an item (row) to what follows (column).
        popularity: [I], number of training events.
        recent: last events of a history that are used.
        decay: weight of an event relative to the one after it.
    """

    keys: Tensor
    shares: Tensor
    popularity: Tensor

    def __init__(
        self,
        transitions: scipy.sparse.csr_array,
        popularity: np.ndarray,
        *,
        recent: int = 8,
        decay: float = 0.65,
    ):
        super().__init__()
        if recent < 1:
            raise ConfigError(f"recent is {recent}: at least 1 event of a history must be used")
        if not 0 < decay <= 1:
            raise ConfigError(f"decay is {decay}: it must be above 0 and at most 1")
        self.num_items, self.max_len, self.decay = len(popularity), recent, decay
        entries = transitions.tocoo()
        # Row and column in one rising number: a part of a row is then found by two searches.
        keys = entries.row.astype(np.int64) * self.num_items + entries.col
        order = keys.argsort()
        self.register_buffer("keys", torch.from_numpy(keys[order]))
        shares = torch.as_tensor(entries.data[order], dtype=torch.float32)
        self.register_buffer("shares", shares)
        # Half of the smallest score that a transition can give is shared out by popularity.
        least = shares.min().item() * decay ** (recent - 1) if len(shares) else 1.0
        share = torch.as_tensor(popularity, dtype=torch.float32) / max(popularity.max(), 1)
        self.register_buffer("popularity", share * least / 2)

    @classmethod
    def fit(
        cls,
        log: EventLog,
        train_end: np.ndarray,
        *,
        window: int = 5,
        neighbours: int = 500,
        recent: int = 8,
        decay: float = 0.65,
    ) -> ItemTransitions:
        """Count transitions.

        Args:
            log: the events.
            train_end: int64 [U].
            window: largest distance between two events that counts.
            neighbours: how many of the items that follow an item are kept, the most frequent ones.
            recent, decay: see the class.

        Raises:
            ConfigError: ``window``, ``neighbours`` or ``recent`` is below 1, or ``decay`` is not
                above 0 and at most 1.
        """
        for name, value in (("window", window), ("neighbours", neighbours)):
            if value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")
        used = training_events(log, train_end)
        items = np.asarray(log.items)[used]
        users = np.repeat(np.arange(log.num_users), np.diff(log.offsets))[used]
        counts = _count_transitions(items, users, log.num_items, window)
        shares = counts.multiply(1 / np.maximum(counts.sum(1), 1e-12)[:, None]).tocsr()
        popularity = np.bincount(items, minlength=log.num_items)
        return cls(_keep_largest(shares, neighbours), popularity, recent=recent, decay=decay)

    def queries(self, batch: Batch) -> Tensor:
        """The last events, latest first, int64 [B, recent]; -1 where there are fewer."""
        back = torch.arange(1, self.max_len + 1, device=batch.items.device)
        starts, ends = batch.cu_seqlens[:-1, None].long(), batch.cu_seqlens[1:, None].long()
        rows = ends - back
        return torch.where(rows >= starts, batch.items[rows.clamp(min=0)], -1)

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start]."""
        width = stop - start
        scores = self.popularity[start:stop].repeat(len(queries), 1)
        # One event at a time no place is written twice, so that sums have one order everywhere.
        for age, items in enumerate(queries.unbind(1)):
            first = torch.searchsorted(self.keys, items * self.num_items + start)
            last = torch.searchsorted(self.keys, items * self.num_items + stop)
            # No event, -1, finds nothing: every key is at least 0.
            counts = last - first
            history = torch.arange(len(items), device=items.device).repeat_interleave(counts)
            entry = torch.arange(len(history), device=items.device)
            entry += (first - (counts.cumsum(0) - counts))[history]
            places = history * width + self.keys[entry] % self.num_items - start
            scores.view(-1).index_add_(0, places, self.shares[entry] * self.decay**age)
        return scores


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


def _count_transitions(
    items: np.ndarray, users: np.ndarray, num_items: int, window: int
) -> scipy.sparse.csr_array:
    """Sum of 1 / distance over pairs of events of one user, sparse [I, I]."""
    counts = scipy.sparse.csr_array((num_items, num_items), dtype=np.float64)
    for distance in range(1, window + 1):
        same = users[:-distance] == users[distance:]
        pairs = items[:-distance][same], items[distance:][same]
        weights = np.full(len(pairs[0]), 1 / distance)
        counts = counts + scipy.sparse.csr_array((weights, pairs), shape=counts.shape)
    return counts


def _keep_largest(matrix: scipy.sparse.csr_array, count: int) -> scipy.sparse.csr_array:
    """Only the ``count`` largest entries of each row; of equal ones those of lower columns."""
    starts = np.asarray(matrix.indptr)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((matrix.indices, np.negative(matrix.data), rows))
    # Sorting by row first leaves each row where it was, so its entries are ranked from its start.
    rank = np.arange(len(rows)) - starts[rows]
    kept = order[rank < count]
    parts = matrix.data[kept], (rows[kept], matrix.indices[kept])
    return scipy.sparse.csr_array(parts, shape=matrix.shape)
