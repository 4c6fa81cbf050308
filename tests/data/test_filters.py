"""Dropping duplicates, repeats and rare users and items, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.reading.options import Filters
from blossomrec.errors import ConfigError
from events_in_parts import filtered

some_events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=60
)


def arrays(rows) -> EventArrays:
    """Events (user, item, time) in the order given; the weight is the place."""
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    return EventArrays(
        users.astype(np.int32),
        items.astype(np.int32),
        times,
        np.arange(len(rows), dtype=np.float32),
    )


def rows(events: EventArrays) -> list[tuple[int, int, int, float]]:
    assert events.weights is not None
    columns = (events.users, events.items, events.times, events.weights)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def core_by_loops(events, filters):
    """The same filters, an event at a time."""
    if filters.drop_duplicates:
        seen, kept = set(), []
        for event in events:
            if event[:3] not in seen:
                kept.append(event)
            seen.add(event[:3])
        events = kept
    before = None
    while before != events:
        before = events
        if filters.merge_repeats:
            kept = []
            for event in events:
                if not kept or kept[-1][:2] != event[:2]:
                    kept.append(event)
            events = kept
        events = [e for e in events if sum(e[0] == f[0] for f in events) >= filters.min_user_events]
        events = [e for e in events if sum(e[1] == f[1] for f in events) >= filters.min_item_events]
    return events


@settings(max_examples=300, deadline=None)
@given(
    rows_given=some_events,
    filters=st.builds(Filters, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans()),
    at_once=st.sampled_from([1, 7, 1000]),
)
def test_filters_agree_with_loops_and_count_what_they_drop(rows_given, filters, at_once):
    events = arrays(rows_given).sorted()
    kept, dropped = filtered(events, filters, at_once)
    assert rows(kept) == core_by_loops(rows(events), filters)
    assert sum(entry["events"] for entry in dropped) == len(rows_given) - len(kept.items)


@settings(max_examples=100, deadline=None)
@given(rows_given=some_events)
def test_sorting_is_by_user_and_time_and_stable(rows_given):
    events = arrays(rows_given).sorted()
    assert rows(events) == sorted(rows(arrays(rows_given)), key=lambda e: (e[0], e[2]))


@settings(max_examples=100, deadline=None)
@given(rows_given=some_events)
def test_has_repeats(rows_given):
    pairs = [row[:2] for row in rows_given]
    assert arrays(rows_given).has_repeats() == (len(set(pairs)) < len(pairs))


def test_reasons_are_told_apart():
    events = arrays([(0, 0, 0), (0, 0, 0), (0, 1, 1), (0, 1, 2), (1, 1, 0), (1, 2, 1), (2, 1, 0)])
    _, dropped = filtered(events.sorted(), Filters(2, 2, True, True))
    assert dropped == [
        {"reason": "same user, item and timestamp", "events": 1},
        {"reason": "repeat of the event before", "events": 1},
        {"reason": "user with fewer than 2 events", "events": 3},
        {"reason": "item with fewer than 2 events", "events": 2},
    ]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize("name", ["min_user_events", "min_item_events"])
def test_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        Filters(**{name: value})
