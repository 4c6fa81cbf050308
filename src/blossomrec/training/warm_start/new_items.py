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
from blossomrec.ranks import ALONE, Ranks
from blossomrec.training.counts import own_events, training_counts

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
# Steps of a cosine of 1 that are told apart, and the last place of a known item.
COSINE_STEPS, LAST_PLACE = 1 << 20, 0xFFFFFFFF


@dataclass(frozen=True)
class Held:
    """Which items of the catalogue a rank has; all call together what they share.

    Attributes:
        ranks: who share the catalogue.
        items: of this one; None for all.
    """

    ranks: Ranks = ALONE
    items: range | None = None

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Those of rising rows that it has."""
        return rows[self.places(rows)]

    def places(self, rows: np.ndarray) -> slice:
        """Where these stand among the rows."""
        if self.items is None:
            return slice(None)
        first, end = np.searchsorted(rows, [self.items.start, self.items.stop]).tolist()
        return slice(first, end)

    def sum(self, x: np.ndarray) -> np.ndarray:
        """Sum over all ranks."""
        return self.ranks.sum_(torch.from_numpy(np.ascontiguousarray(x))).numpy()


@dataclass(frozen=True)
class NewItems:
    """What is known of items without an embedding of their own.

    Attributes:
        fresh: rows of the new items, int64 [F].
        known: rows of items that have an embedding, int64 [K].
        counts: training events of the known items, int64 [K].
        around: how much known items stand near the events of new ones, [F, K].
        alike: the nearest by content, each row's sum 1 or 0, [F, K]; None without content.
        held: which of all items have their embeddings here.
    """

    fresh: np.ndarray
    known: np.ndarray
    counts: np.ndarray
    around: csr_array
    alike: csr_array | None = None
    held: Held = Held()

    @classmethod
    def of(
        cls,
        log: EventLog,
        train_end: np.ndarray,
        is_fresh: np.ndarray,
        content: Tensor | None = None,
        held: Held = Held(),
    ) -> NewItems:
        """From the training events of a log, of which each rank reads those of a part of the users.

        Args:
            train_end: int64 [U], how many of each user's first events may be trained on.
            is_fresh: whether an item is new, bool [I].
            content: what a model makes of what is known of the items that this rank has, [S, D];
                None where it sees none.
            held: these items.
        """
        fresh, known = np.flatnonzero(is_fresh), np.flatnonzero(~is_fresh)
        places = np.where(is_fresh, np.cumsum(is_fresh), np.cumsum(~is_fresh)) - 1
        counts = training_counts(log, train_end, held.ranks)[known]
        shape = (len(fresh), len(known))
        pairs = held.ranks.gathered(_pairs(log, train_end, is_fresh, held.ranks))
        new, near, weights = (np.concatenate(column) for column in zip(*pairs, strict=True))
        around = csr_array((weights, (places[new], places[near])), shape=shape)
        alike = None if content is None else _alike(content, fresh, known, held)
        return cls(fresh, known, counts, around, alike, held)

    @property
    def rare(self) -> np.ndarray:
        """Numbers of the known items with the fewest events, of those that have any."""
        some = np.flatnonzero(self.counts) if self.counts.any() else np.arange(len(self.known))
        wanted = int(np.clip(RARE_SHARE * len(some), FEWEST_RARE, MOST_RARE))
        return some[np.argsort(self.counts[some], kind="stable")[:wanted]]

    def embeddings(self, known: Tensor) -> Tensor:
        """Where the new items of this rank begin, [F', D], by the embeddings of its known ones,
        [K', D]."""
        table, rare = known.double().numpy(), self.rare
        toward = self._weighted(table - self._by_frequency(table))
        rarest = self._of_all(table, rare)
        base, size = rarest.mean(0), np.median(np.linalg.norm(rarest, axis=1))
        return torch.from_numpy(base + _reaching(base, toward, size)).to(known)

    def usual(self, known: Tensor) -> Tensor:
        """The mean of what the rarest known items have in a table of anything, [F, ...]."""
        mean = known[torch.from_numpy(self.rare)].mean(0)
        return mean.expand(len(self.fresh), *mean.shape)

    def _of_all(self, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Values [R, D] of some known items, given those that this rank has, [K', D]."""
        own = np.arange(len(self.known))[self.held.places(self.known)]
        found = np.zeros((len(numbers), values.shape[1]))
        here = np.isin(numbers, own)
        found[here] = values[numbers[here] - own[:1]]
        return self.held.sum(found)

    def _by_frequency(self, table: np.ndarray) -> np.ndarray:
        """What embeddings [K', D] are by how often the items are met alone."""
        counts = self.counts[self.held.places(self.known)]
        lines = np.stack([np.ones(len(counts)), np.log1p(counts)], 1)
        # The least squares by their normal equations, to which each rank adds its items.
        sums = self.held.sum(lines.T @ np.concatenate([lines, table], 1))
        return lines @ np.linalg.lstsq(sums[:, :2], sums[:, 2:], rcond=1e-12)[0]

    def _weighted(self, values: np.ndarray) -> np.ndarray:
        """Means of known items' values, [K', D], by how much they have to do with the new ones that
        this rank has, [F', D]."""
        known, fresh = self.held.places(self.known), self.held.places(self.fresh)
        around, found = self.around[:, known], list[np.ndarray]()
        alike = None if self.alike is None else self.alike[:, known]
        rows = max(1, PIECE // values.shape[1])
        for start in range(0, len(self.fresh), rows):
            part = slice(start, start + rows)
            sums = around[part] @ values
            if alike is not None:
                sums = sums + PRIOR * (alike[part] @ values)
            found.append(self.held.sum(sums)[self.held.places(self.fresh[part])])
        weight = self.around[fresh].sum(axis=1)
        return np.concatenate(found) / (weight + PRIOR)[:, None]

    @property
    def told(self) -> tuple[int, int, int]:
        """How many new items are placed by their events, by their content alone, by neither."""
        events = np.diff(self.around.indptr) > 0
        content = np.zeros_like(events) if self.alike is None else np.diff(self.alike.indptr) > 0
        some = events | content
        return int(events.sum()), int((some & ~events).sum()), int((~some).sum())


def _pairs(
    log: EventLog, train_end: np.ndarray, is_fresh: np.ndarray, ranks: Ranks
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New items, known items that stand near them, and how much each such meeting counts: of the
    events of this rank's part of the users."""
    starts, items = np.asarray(log.offsets[:-1]), np.asarray(log.items)
    ends = starts + train_end
    events = own_events(log, train_end, ranks)
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


def _alike(content: Tensor, fresh: np.ndarray, known: np.ndarray, held: Held) -> csr_array:
    """For new items the known ones of the most similar content, [F, K].

    Args:
        content: of the items that this rank has, [S, D].
    """
    count, columns, ends = min(NEAREST, len(known)), list[np.ndarray](), [0]
    vectors = F.normalize(content.double(), dim=-1)
    first = 0 if held.items is None else held.items.start
    towards = vectors[torch.from_numpy(held.of(known) - first)].T
    places = torch.arange(len(known))[held.places(known)]
    rows = max(1, PIECE // max(1, -(-len(known) // held.ranks.size)))
    for start in range(0, len(fresh), rows):
        part = fresh[start : start + rows]
        some = torch.zeros(len(part), content.shape[1], dtype=torch.float64)
        some[held.places(part)] = vectors[torch.from_numpy(held.of(part) - first)]
        some = held.ranks.sum_(some)
        best = held.ranks.gather(_nearest(some @ towards, places, count)[None])
        best = best.transpose(0, 1).flatten(1).topk(count).values
        # What nothing is known of is like nothing.
        says = some.norm(dim=-1) > 0
        columns.append((LAST_PLACE - (best[says] & LAST_PLACE)).flatten().numpy())
        ends.extend((ends[-1] + np.cumsum(says.numpy()) * count).tolist())
    found = np.concatenate([*columns, np.empty(0, np.int64)])
    weights = np.full(len(found), 1 / max(1, count))
    return csr_array((weights, found, np.array(ends)), shape=(len(fresh), len(known)))


def _nearest(cosine: Tensor, places: Tensor, count: int) -> Tensor:
    """Keys of the nearest of some known items, int64 [F, count], that sort by cosine, then by
    falling place.

    Args:
        cosine: [F, K'].
        places: of these items among all known ones, int64 [K'].
    """
    # Rounded, so that items of the same content are equally near whatever rank has them.
    keys = ((cosine * COSINE_STEPS).round().long() << 32) + (LAST_PLACE - places)
    keys = keys.topk(min(count, len(places))).values
    return F.pad(keys, (0, count - keys.shape[1]), value=torch.iinfo(torch.int64).min)


def _reaching(base: np.ndarray, toward: np.ndarray, size: float) -> np.ndarray:
    """Vectors along ``toward`` [F, D] that, on top of ``base`` [D], have a norm of ``size``."""
    along, square = toward @ base, (toward**2).sum(1)
    inside = np.maximum(along**2 + square * (size**2 - base @ base), 0.0)
    length = (np.sqrt(inside) - along) / np.where(square > 0, square, 1.0)
    return np.maximum(length, 0.0)[:, None] * toward
