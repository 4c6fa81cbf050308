"""Items beside a history's last ones: neighbours in the catalogue (item kNN), and transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from blossomrec.errors import ConfigError
from blossomrec.models.baselines.base import Baseline, keep_largest, training_events, users_by_items

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.data.log import EventLog


class ItemNeighbours(Baseline):
    """Scores an item by its weight beside each of a history's last items.

    A history's last event adds the weights of its item's neighbours in full, each earlier one
    ``decay`` times as much as the next. Items that are nobody's neighbour are ordered by
    popularity, below all others.

    Args:
        neighbours: sparse [I, I], from an item (row) to its neighbours (column), weights above 0.
        popularity: [I], number of training events.
        recent: last events of a history that are used.
        decay: weight of an event relative to the one after it.

    Raises:
        ConfigError: ``recent`` is below 1, or ``decay`` is not above 0 and at most 1.
    """

    keys: Tensor
    weights: Tensor
    popularity: Tensor

    def __init__(
        self,
        neighbours: scipy.sparse.csr_array,
        popularity: np.ndarray,
        *,
        recent: int,
        decay: float,
    ):
        super().__init__()
        if recent < 1:
            raise ConfigError(f"recent is {recent}: at least 1 event of a history must be used")
        if not 0 < decay <= 1:
            raise ConfigError(f"decay is {decay}: it must be above 0 and at most 1")
        self.num_items, self.max_len, self.decay = len(popularity), recent, decay
        entries = neighbours.tocoo()
        # Row and column in one rising number: a part of a row is then found by two searches.
        keys = entries.row.astype(np.int64) * self.num_items + entries.col
        order = keys.argsort()
        self.register_buffer("keys", torch.from_numpy(keys[order]))
        weights = torch.as_tensor(entries.data[order], dtype=torch.float32)
        self.register_buffer("weights", weights)
        # Half of the smallest score that a neighbour can give is shared out by popularity.
        least = weights.min().item() * decay ** (recent - 1) if len(weights) else 1.0
        share = torch.as_tensor(popularity, dtype=torch.float32) / max(popularity.max(), 1)
        self.register_buffer("popularity", share * least / 2)

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
            scores.view(-1).index_add_(0, places, self.weights[entry] * self.decay**age)
        return scores


# Of BM25: how soon one more event of an item stops to count, and how much long histories lose.
K1, B = 1.2, 0.75
# Similarities held at a time.
HELD = 1 << 23


class ItemKNN(ItemNeighbours):
    """Scores an item by its similarity to a history's last items.

    Two items are similar where the same users met them (Sarwar et al., 2001): the weight of a
    neighbour is the inner product of the two items' columns of users by items. An item is no
    neighbour of itself.
    """

    @classmethod
    def fit(
        cls,
        log: EventLog,
        train_end: np.ndarray,
        *,
        similarity: Literal["bm25", "cosine"] = "bm25",
        neighbours: int = 200,
        recent: int = 5,
        decay: float = 0.8,
    ) -> ItemKNN:
        """Find the most similar items of each.

        Args:
            log: the events.
            train_end: int64 [U].
            similarity: "bm25" weighs an event more where the user met few items and the item few
                users; "cosine" divides by the lengths of both columns.
            neighbours: how many similar items of each item are kept.
            recent, decay: see :class:`ItemNeighbours`.

        Raises:
            ConfigError: an option is out of bounds.
        """
        if similarity not in WEIGHTS:
            raise ConfigError(f"similarity is {similarity!r}: choose one of {', '.join(WEIGHTS)}")
        if neighbours < 1:
            raise ConfigError(f"neighbours is {neighbours}: it must be at least 1")
        met = users_by_items(log, train_end)
        nearest = _nearest(WEIGHTS[similarity](met), neighbours)
        items = np.asarray(log.items)[training_events(log, train_end)]
        popularity = np.bincount(items, minlength=log.num_items)
        return cls(nearest, popularity, recent=recent, decay=decay)


def _bm25(met: scipy.sparse.csr_array) -> scipy.sparse.csc_array:
    """BM25 (Robertson and Walker, 1994) with users as documents and items as terms."""
    users, items = met.nonzero()
    lengths, met_by = (np.maximum(met.sum(axis), 1) for axis in (1, 0))
    rarity = np.log1p(len(lengths) / met_by)
    damped = K1 * (1 - B + B * lengths / lengths.mean())
    weights = (K1 + 1) / (damped[users] + 1) * rarity[items]
    return scipy.sparse.csc_array((weights, (users, items)), shape=met.shape)


def _cosine(met: scipy.sparse.csr_array) -> scipy.sparse.csc_array:
    lengths = np.sqrt(np.maximum(met.sum(0), 1))
    return met.multiply(1 / lengths).tocsc()


WEIGHTS = {"bm25": _bm25, "cosine": _cosine}


def _nearest(weights: scipy.sparse.csc_array, count: int) -> scipy.sparse.csr_array:
    """The ``count`` largest inner products of each column with the others, sparse [I, I]."""
    num_items = len(weights.indptr) - 1
    step, everything = max(1, HELD // num_items), weights.tocsr()
    parts = []
    for start in range(0, num_items, step):
        part = (weights[:, start : start + step].T.tocsr() @ everything).tocoo()
        others = part.row + start != part.col
        kept = part.data[others], (part.row[others], part.col[others])
        parts.append(keep_largest(scipy.sparse.csr_array(kept, shape=part.shape), count))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


class ItemTransitions(ItemNeighbours):
    """Scores an item by how often it followed a history's last items.

    A pair of training events of one user at distance 1 .. ``window`` counts 1 / distance; the
    counts of what follows an item are made shares of their sum, its weights.
    """

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
            recent, decay: see :class:`ItemNeighbours`.

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
        return cls(keep_largest(shares, neighbours), popularity, recent=recent, decay=decay)


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
