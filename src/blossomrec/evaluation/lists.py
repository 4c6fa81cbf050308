"""Top lists of cases, and what metrics of them may look at besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blossomrec.data.features import Categories, Feature
from blossomrec.data.windows import each_once, fill, gather_index
from blossomrec.errors import DataError
from blossomrec.evaluation.candidates import seen_pieces, targets_of

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import Cases

# Events of histories and items of lists that are looked at together; bounds memory.
PIECE_ELEMENTS = 1 << 20
# The most popular items with so many of 100 training events are the head, all others the tail.
HEAD_PERCENT = 80


class Pairs(NamedTuple):
    """Numbers of cases, from 0 and rising, and item rows; both int64 [N]."""

    cases: np.ndarray
    items: np.ndarray


@dataclass(frozen=True, eq=False)
class Training:
    """How often the I items of a catalogue were met in training.

    Attributes:
        events: training events of each item, int64 [I].
        users: users who have the item among their training events, int64 [I].
        num_users: users who have training events.
    """

    events: np.ndarray
    users: np.ndarray
    num_users: int

    @classmethod
    def of(cls, log: EventLog, train_end: np.ndarray) -> Training:
        """Count the first ``train_end`` [U] events of each user; DataError where there are none."""
        trained = np.flatnonzero(train_end)
        if not len(trained):
            raise DataError(f"{log.folder} has no events to train on")
        events, users = np.zeros((2, log.num_items), dtype=np.int64)
        for rows, items in seen_pieces(log, trained, train_end[trained]):
            events += np.bincount(items, minlength=log.num_items)
            met = each_once(rows * log.num_items + items) % log.num_items
            users += np.bincount(met, minlength=log.num_items)
        return cls(events, users, len(trained))

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each item by popularity, int64 [I]: 0 has the most events, ties by item row."""
        places = np.empty(len(self.events), dtype=np.int64)
        places[np.argsort(-self.events, kind="stable")] = np.arange(len(places))
        return places

    @cached_property
    def tail(self) -> np.ndarray:
        """Items outside the smallest set that has 80 % of the training events, bool [I]."""
        reached = 100 * np.cumsum(np.sort(self.events)[::-1])
        head = 1 + np.searchsorted(reached, HEAD_PERCENT * self.events.sum())
        return self.places >= head


@dataclass(frozen=True, eq=False)
class Lists:
    """What m cases were recommended, and what a metric of lists may look at besides.

    Attributes:
        top: item rows, best first, int32 [m, K]; -1 where fewer could be recommended.
        targets: the distinct targets of the cases.
        history: every event before the targets, oldest first, however many the model saw.
        filter_seen: whether items of the history, but for targets, were left out.
        training: popularity in the training events.
        column: the column of the item table that the metric was asked for by; None without one.
    """

    top: np.ndarray
    targets: Pairs
    history: Pairs
    filter_seen: bool
    training: Training
    column: Feature | None = None

    def mean(self, values: np.ndarray, k: int) -> np.ndarray:
        """Means [m] of ``values`` [m, K] over the first k items; 0 where there is no item."""
        there = self.top[:, :k] >= 0
        return np.where(there, values[:, :k], 0).sum(1) / np.maximum(1, there.sum(1))

    def first(self, k: int) -> Pairs:
        """The first k items of every list, best first."""
        cases, places = np.nonzero(self.top[:, :k] >= 0)
        return Pairs(cases, self.top[cases, places].astype(np.int64))

    @cached_property
    def relevant(self) -> np.ndarray:
        """Which of the items are targets of their case, bool [m, K]."""
        return np.isin(self._keys(self.top), self._pair_keys(self.targets)) & (self.top >= 0)

    @cached_property
    def popular_places(self) -> np.ndarray:
        """Place that each item would have, were the case recommended what is popular: [m, K].

        The candidates are the same: what was left out for a user is left out there as well.
        """
        places = self.training.places
        found = places[self.top]
        if not self.filter_seen:
            return found
        seen, wanted = each_once(self._pair_keys(self.history)), self._pair_keys(self.targets)
        left_out = seen[~np.isin(seen, wanted, assume_unique=True)]
        case, item = np.divmod(left_out, len(places))
        ahead = np.sort(case * len(places) + places[item])
        start = np.searchsorted(ahead, self._keys(np.zeros((len(self.top), 1), dtype=np.int64)))
        return found - (np.searchsorted(ahead, self._keys(found)) - start)

    @cached_property
    def history_shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Distribution of the categories of ``column`` in each history; see :func:`shares`."""
        assert isinstance(self.column, Categories)
        return shares(self.column, self.history)

    def _keys(self, items: np.ndarray) -> np.ndarray:
        """One number for each case and item, int64 [m, K]; rows of cases do not overlap."""
        return np.arange(len(items))[:, None] * len(self.training.events) + items

    def _pair_keys(self, pairs: Pairs) -> np.ndarray:
        return pairs.cases * len(self.training.events) + pairs.items


def pieces(
    top: np.ndarray, log: EventLog, cases: Cases, training: Training, *, filter_seen: bool
) -> Iterator[Lists]:
    """The lists ``top`` [M, K] of all cases, as many cases at a time as memory is to hold."""
    targets, lengths = targets_of(log, cases), cases.history_end
    cuts = fill(lengths + top.shape[1], PIECE_ELEMENTS).tolist()
    for begin, stop in pairwise(cuts):
        part = slice(begin, stop)
        events = gather_index(np.asarray(log.offsets[cases.users[part]]), lengths[part])
        wanted = slice(targets.offsets[begin], targets.offsets[stop])
        numbers = np.arange(stop - begin)
        yield Lists(
            top=top[part],
            targets=Pairs(np.repeat(numbers, targets.counts[part]), targets.items[wanted]),
            history=Pairs(np.repeat(numbers, lengths[part]), log.items[events].astype(np.int64)),
            filter_seen=filter_seen,
            training=training,
        )


def category_sums(
    column: Categories, pairs: Pairs, *, norm: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of the category vectors of the items of each case, each scaled to norm 1.

    The vector of an item has ones for its known categories and zeros for all others.

    Args:
        norm: 1 is the sum of the entries, 2 the Euclidean length.

    Returns:
        ``case * column.size + category``, int64 [P] and rising; the sum at that category, float64
        [P]; and of which items any category is known, bool [N].
    """
    starts, ends = column.offsets[pairs.items], column.offsets[pairs.items + 1]
    numbers = column.values[gather_index(starts, ends - starts)]
    of = np.repeat(np.arange(len(pairs.items)), ends - starts)[numbers > 0]
    counts = np.bincount(of, minlength=len(pairs.items))
    found = pairs.cases[of] * column.size + numbers[numbers > 0]
    keys, which = np.unique(found, return_inverse=True)
    sums = np.bincount(which, counts[of] ** (-1 / norm), minlength=len(keys))
    return keys, sums, counts > 0


def shares(column: Categories, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of categories over the items of each case; of several, an item has equal parts.

    Returns:
        ``case * column.size + category``, int64 [P] and rising, and the share of that category,
        float64 [P], which add up to 1 in a case. Items of no known category count nothing.
    """
    keys, sums, _ = category_sums(column, pairs, norm=1)
    case = keys // column.size
    return keys, sums / np.bincount(case, sums)[case]
