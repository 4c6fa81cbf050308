"""Events as arrays: in the order of a log, equal times ordered, repeated and rare ones dropped."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

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


# Fewer steps than these prove nothing about how a table is sorted.
MIN_STEPS = 100
MAX_ASCENDING = 0.95


@dataclass(frozen=True)
class Ties:
    """Steps from an event of a user to the next one at the same time.

    steps: all steps between neighbouring events of a user, tied or not; ascending, descending:
    tied steps to an item whose id comes later or earlier; to the same item it is neither.
    """

    steps: int
    tied: int
    ascending: int
    descending: int

    @classmethod
    def of(cls, events: EventArrays) -> Ties:
        """Counted in sorted events whose item numbers are in order of id."""
        tied, items = _tied(events), events.items
        return cls(
            steps=int(np.count_nonzero(events.users[1:] == events.users[:-1])),
            tied=int(np.count_nonzero(tied)),
            ascending=int(np.count_nonzero(tied & (items[1:] > items[:-1]))),
            descending=int(np.count_nonzero(tied & (items[1:] < items[:-1]))),
        )

    @property
    def share_ascending(self) -> float:
        """Among the tied steps to another item; 0 where there is none."""
        return self.ascending / max(self.ascending + self.descending, 1)

    @property
    def sorted_by_item(self) -> bool:
        """Whether the order of tied events is that of their ids, and so tells the next item."""
        enough = self.ascending + self.descending >= MIN_STEPS
        return enough and self.share_ascending > MAX_ASCENDING

    def summary(self, shuffled: bool) -> dict[str, Any]:
        return {
            "steps": self.tied,
            "share": self.tied / max(self.steps, 1),
            "share_ascending": self.share_ascending,
            "shuffled": shuffled,
        }


def order_ties(
    events: EventArrays, ties: Literal["auto", "keep", "shuffle"], source: str
) -> tuple[EventArrays, dict[str, Any]]:
    """Sorted events with their ties as they are or shuffled, and what to say of it in a summary.

    events: sorted by user and time, with item numbers in order of id. "auto" shuffles, with a
    warning that names ``source``, where the order is that of the ids.
    """
    counted = Ties.of(events)
    leaks = counted.sorted_by_item
    if ties == "auto" and leaks:
        warnings.warn(
            f"{source}: events with equal times are shuffled, as their order is none: "
            f"{counted.share_ascending:.1%} of {counted.ascending + counted.descending:,} steps "
            "between them lead to a higher item id (the option ties decides)",
            stacklevel=2,
        )
    shuffled = ties == "shuffle" or (ties == "auto" and leaks)
    return shuffle_ties(events) if shuffled else events, counted.summary(shuffled)


def shuffle_ties(events: EventArrays) -> EventArrays:
    """Events with equal times of a user in an order that depends on nothing but what they are.

    The order is that of a hash of user, time and item, so that the order of the table and other
    events leave no trace in it.
    """
    tied = _tied(events)
    if not tied.any():
        return events
    with_previous, with_next = np.append(False, tied), np.append(tied, False)
    places = np.flatnonzero(with_previous | with_next)
    group = np.cumsum(~with_previous)[places]
    keys = [events.items[places], _hashes(events, places), group]
    if events.weights is not None:
        keys.insert(0, events.weights[places])
    order = np.arange(len(events.users))
    order[places] = places[np.lexsort(keys)]
    return events.take(order)


def _tied(events: EventArrays) -> np.ndarray:
    """Whether each event but the first has the user and the time of the one before: bool [E-1]."""
    users, times = events.users, events.times
    return (users[1:] == users[:-1]) & (times[1:] == times[:-1])


def _hashes(events: EventArrays, places: np.ndarray) -> np.ndarray:
    """uint64, of user, time and item of the events at ``places``."""
    times = np.ascontiguousarray(events.times[places]).view(np.uint64)
    mixed = _mix(events.users[places].astype(np.uint64))
    mixed = _mix(mixed ^ times)
    return _mix(mixed ^ events.items[places].astype(np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on all bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
