"""A user's own items again: what nothing beats where people return to what they know."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.batches import HistoryBatches
from blossomrec.errors import ConfigError
from blossomrec.models.baselines.base import Baseline, DistinctItems, training_events

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.data.log import EventLog

# Decays that are tried, on how many users, at which cut-off.
DECAYS = (1.0, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6)
TRIED_USERS, TRIED_K, TRIED_TOKENS = 2_000, 10, 65_536
# A history's events before these count for nothing; bounds what is held of a history.
RECENT = 2_000


class _Personal(Baseline):
    """Ranks the items of a history before all others, which follow by popularity.

    Args:
        popularity: [I], number of training events.
        recent: last events of a history that are used.

    Raises:
        ConfigError: ``recent`` is below 1.
    """

    popularity: Tensor
    own_items = True

    def __init__(self, popularity: np.ndarray, *, recent: int = RECENT):
        super().__init__()
        if recent < 1:
            raise ConfigError(f"recent is {recent}: at least 1 event of a history must be used")
        self.num_items, self.max_len = len(popularity), recent
        share = torch.as_tensor(popularity, dtype=torch.float32) / max(popularity.max(), 1)
        self.register_buffer("popularity", share / 2)

    @abstractmethod
    def order(self, distinct: DistinctItems) -> list[Tensor]:
        """Numbers [N], compared one after the other: the larger, the better the item."""

    def queries(self, batch: Batch) -> Tensor:
        """Own items and the rank of each from the worst, 0: int32 [B, most, 2], -1 for none.

        Items that are alike have one rank. Ranks are exact in float32, whatever they come from.
        """
        distinct = DistinctItems(batch, self.num_items)
        rank = _dense_ranks([distinct.history, *self.order(distinct)])
        worst = rank.new_full((distinct.histories,), len(rank))
        worst.scatter_reduce_(0, distinct.history, rank, "amin")
        rank -= worst[distinct.history]
        return distinct.table(min(self.max_len, self.num_items), distinct.item, rank)

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start]: 1 + rank of own items, a share up to 1/2 of the others."""
        items, ranks = queries.unbind(2)
        scores = self.popularity[start:stop].repeat(len(queries), 1)
        rows, places = torch.nonzero((items >= start) & (items < stop), as_tuple=True)
        scores[rows, items[rows, places].long() - start] = 1.0 + ranks[rows, places]
        return scores


class PersonalRecency(_Personal):
    """Scores the items of a history by how recently they occurred, all others by popularity."""

    @classmethod
    def fit(cls, log: EventLog, train_end: np.ndarray, *, recent: int = RECENT) -> PersonalRecency:
        """Count the training events of each item; ConfigError where ``recent`` is below 1."""
        return cls(_popularity(log, train_end), recent=_within(recent, log))

    def order(self, distinct: DistinctItems) -> list[Tensor]:
        age = distinct.age.new_full((len(distinct.item),), len(distinct.age))
        return [-age.scatter_reduce_(0, distinct.event, distinct.age, "amin")]


class PersonalFrequency(_Personal):
    """Scores the items of a history by how often they occurred, all others by popularity.

    An event counts ``decay`` to the power of the number of events after it; 1 is plain counting.
    Among items that are equal the more popular one goes first.

    Args:
        decay: above 0 and at most 1.

    Raises:
        ConfigError: ``decay`` or ``recent`` is out of bounds.
    """

    def __init__(self, popularity: np.ndarray, *, decay: float, recent: int = RECENT):
        super().__init__(popularity, recent=recent)
        if not 0 < decay <= 1:
            raise ConfigError(f"decay is {decay}: it must be above 0 and at most 1")
        self.decay = decay

    @classmethod
    def fit(
        cls,
        log: EventLog,
        train_end: np.ndarray,
        *,
        decay: float | None = None,
        recent: int = RECENT,
    ) -> PersonalFrequency:
        """Count the training events of each item and, where none is given, choose the decay.

        Args:
            log: the events.
            train_end: int64 [U].
            decay: None is the one of ``DECAYS`` with the best NDCG@10 for the last training event
                of each user.
            recent: last events of a history that are used.

        Raises:
            ConfigError: ``decay`` or ``recent`` is out of bounds.
        """
        popularity, recent = _popularity(log, train_end), _within(recent, log)
        decays = DECAYS if decay is None else (decay,)
        tried = [cls(popularity, decay=one, recent=recent) for one in decays]
        return tried[0] if decay else max(tried, key=lambda one: _gain(one, log, train_end))

    def order(self, distinct: DistinctItems) -> list[Tensor]:
        counts = torch.zeros(len(distinct.item), dtype=torch.float64, device=distinct.item.device)
        counts.index_add_(0, distinct.event, self.decay ** distinct.age.double())
        return [counts, self.popularity[distinct.item]]


def _dense_ranks(columns: list[Tensor]) -> Tensor:
    """Ranks [N], from 0, in the order of the columns [N], the first deciding; one for equals."""
    order = torch.arange(len(columns[0]), device=columns[0].device)
    for column in reversed(columns):
        order = order[column[order].argsort(stable=True)]
    changes = torch.zeros_like(order)
    for column in columns:
        changes[1:] |= column[order].diff() != 0
    return torch.empty_like(order).scatter_(0, order, changes.cumsum(0))


def _popularity(log: EventLog, train_end: np.ndarray) -> np.ndarray:
    items = np.asarray(log.items)[training_events(log, train_end)]
    return np.bincount(items, minlength=log.num_items)


def _within(recent: int, log: EventLog) -> int:
    """At most the events of the longest history: what is held follows from it."""
    return min(recent, int(np.diff(log.offsets).max()))


def _gain(scorer: _Personal, log: EventLog, train_end: np.ndarray) -> float:
    """NDCG@10 of own items for the last training event of users, a fixed sample."""
    users = np.flatnonzero(train_end >= 2)
    if len(users) > TRIED_USERS:
        users = np.sort(np.random.default_rng(0).choice(users, TRIED_USERS, replace=False))
    if not len(users):
        return 0.0
    last = np.asarray(train_end)[users] - 1
    targets = torch.from_numpy(np.asarray(log.items)[log.offsets[users] + last].astype(np.int64))
    histories = HistoryBatches(
        log, users, last, max_len=max(2, scorer.max_len), tokens_per_batch=TRIED_TOKENS
    )
    gain = 0.0
    for part, batch in histories:
        items, ranks = scorer.queries(batch).unbind(2)
        own = items == targets[part, None]
        rank = torch.where(own, ranks, -1).amax(1, keepdim=True)
        place = ((ranks >= rank) & ~own).sum(1)
        gains = 1 / torch.log2(place[own.any(1)] + 2.0)
        gain += gains[gains >= 1 / math.log2(TRIED_K + 1)].sum().item()
    return gain / len(users)
