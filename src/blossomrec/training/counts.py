"""How often items are met in training."""

from __future__ import annotations

import numpy as np
import torch

from blossomrec.data.log import EventLog
from blossomrec.data.windows import gather_index
from blossomrec.ranks import ALONE, Ranks


def training_counts(log: EventLog, train_end: np.ndarray, ranks: Ranks = ALONE) -> np.ndarray:
    """Training events of each item, int64 [I]; each rank counts those of a part of the users.

    Args:
        train_end: int64 [U], how many of each user's first events may be trained on.
        ranks: who call this together.
    """
    events = own_events(log, train_end, ranks)
    counts = np.bincount(log.items[events], minlength=log.num_items)
    return ranks.sum_(torch.from_numpy(counts)).numpy()


def own_events(log: EventLog, train_end: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Rows in the log of the training events of this rank's part of the users, int64, rising."""
    users = ranks.rows(log.num_users)
    starts = np.asarray(log.offsets[users.start : users.stop])
    return gather_index(starts, np.asarray(train_end[users.start : users.stop]))
