"""What baselines count in the training events of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from blossomrec.errors import DataError

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog


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
    met = np.unique(users * log.num_items + np.asarray(log.items)[used])
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
