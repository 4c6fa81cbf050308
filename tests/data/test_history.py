"""A history, its parts, and one that grows."""

import numpy as np
import pytest

from blossomrec.data.history import GrowingHistory, History


def test_a_part_of_a_history_has_all_its_arrays():
    history = History(np.array([3, 1, 4, 1]), np.array([10, 20, 30, 40]))
    assert len(history) == 4 and len(history[-3:]) == 3
    assert history[-3:].times.tolist() == [20, 30, 40]
    odd = history[history.items % 2 == 1]
    assert (odd.items.tolist(), odd.times.tolist()) == ([3, 1, 1], [10, 20, 40])
    assert History.of([1, 2])[:1].times is None and History.of(history) is history


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="times has 1 entries for 2 events"):
        History(np.array([1, 2]), np.array([10]))


@pytest.mark.parametrize("inputs", [("items",), ("items", "times")])
def test_a_growing_history_is_all_its_parts(inputs):
    rng, grown, parts = np.random.default_rng(0), GrowingHistory(inputs), []
    for _ in range(100):
        count = rng.integers(0, 6)
        parts.append(History(rng.integers(0, 99, count), rng.integers(0, 2**60, count)))
        grown.extend(parts[-1])
    assert grown.items.tolist() == [item for part in parts for item in part.items]
    assert len(grown) == len(grown.events) == len(grown.items)
    if "times" in inputs:
        assert grown.events.times.tolist() == [time for part in parts for time in part.times]
    else:
        assert grown.events.times is None
    assert grown.nbytes < 1.6 * len(grown) * (4 if len(inputs) == 1 else 12) + 64


def test_times_that_are_no_whole_numbers_stay_what_they_are():
    grown = GrowingHistory(("items", "times"))
    for times in ([1, 2], [], [2.5], [3]):
        grown.extend(History(np.zeros(len(times), int), np.array(times)))
    assert grown.events.times.tolist() == [1, 2, 2.5, 3]
