"""Dropping events from a log: duplicates, neighbouring repeats, rare users and items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from blossomrec.data.reading.options import Filters


@dataclass(frozen=True)
class EventArrays:
    """E events: user and item numbers, int32 [E]; times [E]; weights, float32 [E], or None."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    weights: np.ndarray | None

    def take(self, index: np.ndarray) -> EventArrays:
        """The events at ``index``, a mask or positions."""
        weights = None if self.weights is None else self.weights[index]
        return EventArrays(self.users[index], self.items[index], self.times[index], weights)

    def sorted(self) -> EventArrays:
        """By user, then time; events with equal times stay in order."""
        users, times = self.users, self.times
        later = (users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] >= times[:-1]))
        return self if later.all() else self.take(np.lexsort((times, users)))

    def renumbered(self, user_rows: np.ndarray, item_rows: np.ndarray) -> EventArrays:
        """With ``user_rows[user]`` for each user and ``item_rows[item]`` for each item."""
        return EventArrays(user_rows[self.users], item_rows[self.items], self.times, self.weights)

    def has_repeats(self) -> bool:
        """Whether some user has the same item twice."""
        pairs = self.users.astype(np.int64) * (int(self.items.max()) + 1) + self.items
        pairs.sort()
        return bool((pairs[1:] == pairs[:-1]).any())


def drop_events(events: EventArrays, filters: Filters) -> tuple[EventArrays, list[dict[str, Any]]]:
    """The sorted events that remain, and what was dropped: one {reason, events} per filter in use.

    Duplicates go first. Merging repeats and dropping rare users and items then alternate until
    neither finds any more, as each can make work for the other.
    """
    counts: dict[str, int] = {}
    if filters.drop_duplicates:
        events = _keep(events, ~_is_duplicate(events), counts, "same user, item and timestamp")
    before = -1
    while before != len(events.items) > 0:
        before = len(events.items)
        if filters.merge_repeats:
            events = _keep(events, ~_is_repeat(events), counts, "repeat of the event before")
        events = _drop_rare(events, filters, counts)
    return events, [{"reason": reason, "events": count} for reason, count in counts.items()]


def _keep(
    events: EventArrays, kept: np.ndarray, counts: dict[str, int], reason: str
) -> EventArrays:
    dropped = int(len(kept) - np.count_nonzero(kept))
    counts[reason] = counts.get(reason, 0) + dropped
    return events.take(kept) if dropped else events


def _is_duplicate(events: EventArrays) -> np.ndarray:
    order = np.lexsort((events.times, events.items, events.users))
    same = np.ones(len(order) - 1, dtype=bool)
    for values in (events.users, events.items, events.times):
        ordered = values[order]
        same &= ordered[1:] == ordered[:-1]
    duplicate = np.zeros(len(order), dtype=bool)
    duplicate[order[1:]] = same
    return duplicate


def _is_repeat(events: EventArrays) -> np.ndarray:
    repeat = np.zeros(len(events.items), dtype=bool)
    repeat[1:] = (events.users[1:] == events.users[:-1]) & (events.items[1:] == events.items[:-1])
    return repeat


def _drop_rare(events: EventArrays, filters: Filters, counts: dict[str, int]) -> EventArrays:
    """Iterated core: until every user and every item left has enough events."""
    few_user = f"user with fewer than {filters.min_user_events} events"
    few_item = f"item with fewer than {filters.min_item_events} events"
    before = -1
    while before != len(events.items) > 0:
        before = len(events.items)
        if filters.min_user_events > 1:
            common = np.bincount(events.users) >= filters.min_user_events
            events = _keep(events, common[events.users], counts, few_user)
        if filters.min_item_events > 1 and len(events.items):
            common = np.bincount(events.items) >= filters.min_item_events
            events = _keep(events, common[events.items], counts, few_item)
    return events
