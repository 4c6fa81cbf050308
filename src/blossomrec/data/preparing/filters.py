"""Events dropped from a log: repeated ones, and those of rare users and items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.preparing.parts import EventParts
from blossomrec.data.reading.options import Filters


def drop_events(events: EventParts, items: np.ndarray, filters: Filters) -> list[dict[str, Any]]:
    """Drop what the filters say from parts of sorted events; what was dropped.

    Duplicates go first. Merging repeats and dropping rare users and items then alternate until
    neither finds any more, as each can make work for the other.

    Args:
        items: events of each item, int64; counted down.

    Returns:
        One {reason, events} per filter in use.
    """
    dropping = _Dropping(events, items)
    if filters.drop_duplicates:
        dropping.drop(_is_duplicate, "same user, item and timestamp")
    before = -1
    while before != len(events) > 0:
        before = len(events)
        if filters.merge_repeats:
            dropping.drop(_is_repeat, "repeat of the event before")
        _drop_rare(dropping, filters)
    return [{"reason": reason, "events": count} for reason, count in dropping.counts.items()]


class _Dropping:
    def __init__(self, events: EventParts, items: np.ndarray):
        self.events, self.items = events, items
        self.counts = dict[str, int]()

    def drop(self, chosen: Callable[[EventArrays], np.ndarray], reason: str) -> None:
        """Drop events for which ``chosen`` is true of a part, bool, and count them."""

        def kept(part: EventArrays) -> EventArrays:
            dropped = chosen(part)
            if not dropped.any():
                return part
            # Of many items a part has few.
            np.subtract.at(self.items, part.items[dropped], 1)
            return part.take(~dropped)

        before = len(self.events)
        self.events.replace(kept)
        self.counts[reason] = self.counts.get(reason, 0) + before - len(self.events)


def _drop_rare(dropping: _Dropping, filters: Filters) -> None:
    """Iterated core: until every user and every item left has enough events."""
    few_user = f"user with fewer than {filters.min_user_events} events"
    few_item = f"item with fewer than {filters.min_item_events} events"

    def is_of_rare_user(part: EventArrays) -> np.ndarray:
        first = int(part.users[0])
        rare = np.bincount(part.users - first) < filters.min_user_events
        return rare[part.users - first]

    before = -1
    while before != len(dropping.events) > 0:
        before = len(dropping.events)
        if filters.min_user_events > 1:
            dropping.drop(is_of_rare_user, few_user)
        if filters.min_item_events > 1 and len(dropping.events):
            rare = dropping.items < filters.min_item_events
            dropping.drop(lambda part, rare=rare: rare[part.items], few_item)


def _is_duplicate(events: EventArrays) -> np.ndarray:
    keys = [events.times, events.items, events.users]
    if events.kinds is not None:
        keys.insert(0, events.kinds)
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, dtype=bool)
    for values in keys:
        ordered = values[order]
        same &= ordered[1:] == ordered[:-1]
    duplicate = np.zeros(len(order), dtype=bool)
    duplicate[order[1:]] = same
    return duplicate


def _is_repeat(events: EventArrays) -> np.ndarray:
    repeat = np.ones(len(events.items), dtype=bool)
    repeat[:1] = False
    for values in (events.users, events.items, events.kinds):
        if values is not None:
            repeat[1:] &= values[1:] == values[:-1]
    return repeat
