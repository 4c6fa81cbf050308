"""How far the popularity of items in arriving events is from that in training."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blossomrec.data.log import EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError

BUCKETS = 20
# Events of the log that are counted at a time.
PIECE = 1 << 20
# Weights of events grow; beyond this all of them are made smaller.
LARGEST_WEIGHT = 1e100


@dataclass(frozen=True, eq=False)
class TrainedPopularity:
    """Items in buckets from popular to rare, each with about as many events of training.

    Attributes:
        bucket: of each item, uint8 [I].
        shares: of the events of training in each bucket, float64 [B].
    """

    bucket: np.ndarray
    shares: np.ndarray

    @classmethod
    def of_counts(cls, counts: np.ndarray) -> TrainedPopularity:
        """Of the number of events of each item, [I], not all of them 0.

        >>> TrainedPopularity.of_counts(np.array([1, 40, 0])).shares[[10, 19]].round(2).tolist()
        [0.0, 0.02]
        """
        order = np.argsort(-counts, kind="stable")
        # The middle of an item, so that one with the events of several buckets stands in one.
        middle = np.cumsum(counts[order]) - counts[order] / 2
        bucket = np.empty(len(counts), np.uint8)
        bucket[order] = np.minimum(middle / counts.sum() * BUCKETS, BUCKETS - 1)
        return cls(bucket, np.bincount(bucket, counts, minlength=BUCKETS) / counts.sum())

    @classmethod
    def of_log(cls, folder: Path, items: Vocabulary) -> TrainedPopularity | None:
        """Of the log that a model was trained on; None where it is gone or has none of the items.

        Args:
            items: of the model.
        """
        with contextlib.suppress(DataError):
            log = EventLog.open(folder)
            rows, counts = items.rows_of(log.item_vocabulary), np.zeros(items.size)
            for start in range(0, log.num_events, PIECE):
                found = rows[log.items[start : start + PIECE]]
                counts += np.bincount(found[found >= 0], minlength=items.size)
                # Threads that answer wait no longer than for a piece.
                time.sleep(0)
            if counts.any():
                return cls.of_counts(counts)
        return None


class PopularityDrift:
    """Counts arriving events by bucket, new ones counting more; any thread may use it.

    Args:
        look_back: events after which one counts 1/e of a new one; 0 counts none.
    """

    def __init__(self, look_back: int):
        self._growth = 1 + 1 / look_back if look_back else math.inf
        self._lock = threading.Lock()
        self.use(None)

    def use(self, trained: TrainedPopularity | None) -> None:
        """Begin anew, beside the training of another model; None counts nothing."""
        with self._lock:
            self._trained, self._weight = trained, 1.0
            self._counts = [0.0] * BUCKETS

    def count(self, trained: TrainedPopularity | None, rows: np.ndarray) -> None:
        """Count events of items, by rows of the model of ``trained``; of another they are not."""
        if self._growth == math.inf:
            return
        with self._lock:
            if trained is None or trained is not self._trained:
                return
            for bucket in trained.bucket[rows].tolist():
                self._counts[bucket] += self._weight
                self._weight *= self._growth
            if self._weight > LARGEST_WEIGHT:
                self._counts = [count / self._weight for count in self._counts]
                self._weight = 1.0

    def distance(self) -> float:
        """Total variation distance of the two distributions over buckets, 0 to 1.

        Not a number where there is nothing to tell it from.
        """
        with self._lock:
            trained, counts = self._trained, np.array(self._counts)
        if trained is None or not counts.any():
            return math.nan
        return float(np.abs(counts / counts.sum() - trained.shares).sum() / 2)

    def events(self) -> float:
        """How many new events those that were counted are worth, at most ``look_back``."""
        with self._lock:
            return sum(self._counts) / self._weight
