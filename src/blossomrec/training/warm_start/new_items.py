"""Where items begin that a model has not met: near those that they are like, and as rare ones.

An embedding says two things of an item: how often it is met, which is much the same direction for
all items, and what goes with it. The first is taken off the known embeddings by a line along the
logarithm of their events. Of what is left, a new item gets the mean of the items that stand near
its events, and of those whose content is like its own; with it, it begins where rare items are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from blossomrec.data.log import EventLog
from blossomrec.data.windows import gather_index

# Events before and after one of a new item that tell what goes with it; each counts by 1/distance.
REACH = 3
# Known items with the most similar content, by cosine.
NEAREST = 10
# What is known before any event counts as much as so many neighbouring events.
PRIOR = 4.0
# Known items with the fewest events: a share of all, of which there are bounds.
RARE_SHARE, FEWEST_RARE, MOST_RARE = 0.1, 10, 1_000
# Similarities that are computed together.
PIECE = 1 << 24


@dataclass(frozen=True)
class NewItems:
    """What is known of items without an embedding of their own.

    Attributes:
        fresh: rows of the new items, int64 [F].
        known: rows of items that have an embedding, int64 [K].
        counts: training events of the known items, int64 [K].
        around: how much known items stand near the events of new ones, [F, K].
        alike: the nearest by content, each row's sum 1 or 0, [F, K]; None without content.
    """

    fresh: np.ndarray
    known: np.ndarray
    counts: np.ndarray
    around: csr_array
    alike: csr_array | None = None

    @classmethod
    def of(
        cls,
        log: EventLog,
        train_end: np.ndarray,
        is_fresh: np.ndarray,
        content: Tensor | None = None,
    ) -> NewItems:
        """From the training events of a log.

        Args:
            train_end: int64 [U], how many of each user's first events may be trained on.
            is_fresh: whether an item is new, bool [I].
            content: what a model makes of what is known of items, [I, D]; None where it sees none.
        """
        fresh, known = np.flatnonzero(is_fresh), np.flatnonzero(~is_fresh)
        places = np.where(is_fresh, np.cumsum(is_fresh), np.cumsum(~is_fresh)) - 1
        events = gather_index(np.asarray(log.offsets[:-1]), np.asarray(train_end))
        counts = np.bincount(log.items[events], minlength=log.num_items)[known]
        shape = (len(fresh), len(known))
        pairs = _pairs(log, train_end, is_fresh)
        around = csr_array((pairs[2], (places[pairs[0]], places[pairs[1]])), shape=shape)
        alike = None if content is None else _alike(content[fresh], content[known])
        return cls(fresh, known, counts, around, alike)

    @property
    def rare(self) -> np.ndarray:
        """Numbers of the known items with the fewest events, of those that have any."""
        some = np.flatnonzero(self.counts) if self.counts.any() else np.arange(len(self.known))
        wanted = int(np.clip(RARE_SHARE * len(some), FEWEST_RARE, MOST_RARE))
        return some[np.argsort(self.counts[some], kind="stable")[:wanted]]

    def embeddings(self, known: Tensor) -> Tensor:
        """Where new items begin, [F, D], by the embeddings of the known ones, [K, D]."""
        table, rare = known.double().numpy(), self.rare
        toward = self._weighted(table - _by_frequency(table, self.counts))
        base = table[rare].mean(0)
        size = np.median(np.linalg.norm(table[rare], axis=1))
        return torch.from_numpy(base + _reaching(base, toward, size)).to(known)

    def usual(self, known: Tensor) -> Tensor:
        """The mean of what the rarest known items have in a table of anything, [F, ...]."""
        mean = known[torch.from_numpy(self.rare)].mean(0)
        return mean.expand(len(self.fresh), *mean.shape)

    def _weighted(self, values: np.ndarray) -> np.ndarray:
        """Means of known items' values, [F, D], by how much they have to do with the new ones."""
        total, weight = self.around @ values, self.around.sum(axis=1)
        if self.alike is not None:
            total = total + PRIOR * (self.alike @ values)
        return total / (weight + PRIOR)[:, None]

    @property
    def told(self) -> tuple[int, int, int]:
        """How many new items are placed by their events, by their content alone, by neither."""
        events = np.diff(self.around.indptr) > 0
        content = np.zeros_like(events) if self.alike is None else np.diff(self.alike.indptr) > 0
        some = events | content
        return int(events.sum()), int((some & ~events).sum()), int((~some).sum())


def _pairs(
    log: EventLog, train_end: np.ndarray, is_fresh: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New items, known items that stand near them, and how much each such meeting counts."""
    starts, items = np.asarray(log.offsets[:-1]), np.asarray(log.items)
    ends = starts + train_end
    events = gather_index(starts, np.asarray(train_end))
    events = events[is_fresh[items[events]]]
    users = np.searchsorted(np.asarray(log.offsets), events, side="right") - 1
    found = [(events[:0], events[:0], np.empty(0))]
    for distance in range(1, REACH + 1):
        for other in (events - distance, events + distance):
            inside = (other >= starts[users]) & (other < ends[users])
            here, there = items[events[inside]], items[other[inside]]
            known = ~is_fresh[there]
            weights = np.full(int(known.sum()), 1 / distance)
            found.append((here[known], there[known], weights))
    fresh, known, weights = (np.concatenate(column) for column in zip(*found, strict=True))
    return fresh, known, weights


def _alike(fresh: Tensor, known: Tensor) -> csr_array:
    """For new items the known ones of the most similar content, [F, K]."""
    count, columns, weights, ends = min(NEAREST, len(known)), [], [], [0]
    towards = F.normalize(known, dim=-1).T
    for part in fresh.split(max(1, PIECE // max(1, len(known)))):
        nearest = (F.normalize(part, dim=-1) @ towards).topk(count).indices
        # What nothing is known of is like nothing.
        says = part.norm(dim=-1) > 0
        columns.append(nearest[says].flatten().numpy())
        weights.append(np.full(len(columns[-1]), 1 / max(1, count)))
        ends.extend((ends[-1] + np.cumsum(says.numpy()) * count).tolist())
    parts = (np.concatenate([*weights, []]), np.concatenate([*columns, np.empty(0, np.int64)]))
    return csr_array((*parts, np.array(ends)), shape=(len(fresh), len(known)))


def _by_frequency(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What embeddings [K, D] are by how often the items are met alone."""
    lines = np.stack([np.ones(len(counts)), np.log1p(counts)], 1)
    return lines @ np.linalg.lstsq(lines, table, rcond=None)[0]


def _reaching(base: np.ndarray, toward: np.ndarray, size: float) -> np.ndarray:
    """Vectors along ``toward`` [F, D] that, on top of ``base`` [D], have a norm of ``size``."""
    along, square = toward @ base, (toward**2).sum(1)
    inside = np.maximum(along**2 + square * (size**2 - base @ base), 0.0)
    length = (np.sqrt(inside) - along) / np.where(square > 0, square, 1.0)
    return np.maximum(length, 0.0)[:, None] * toward
