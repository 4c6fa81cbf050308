"""What followed what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from blossomrec.errors import ConfigError
from blossomrec.models.baselines.base import keep_largest, training_events
from blossomrec.models.baselines.item_knn import ItemNeighbours

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog


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
