"""Items that the same users met: nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse

from blossomrec.errors import ConfigError
from blossomrec.models.baselines.counts import keep_largest, training_events, users_by_items
from blossomrec.models.baselines.neighbours import ItemNeighbours

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog

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
