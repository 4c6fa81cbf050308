"""How often and when an item was in a history, in words."""

import numpy as np
import pytest

from blossomrec.data.history import History
from blossomrec.report.wording import duration, habit

DAY = 86_400


def history(items, days=None, asked=None):
    times = None if days is None else 1_600_000_000 + np.array(days) * DAY
    moment = None if asked is None else np.full(len(items), 1_600_000_000 + asked * DAY)
    return History(np.array(items), times, moment)


@pytest.mark.parametrize(
    "given, words",
    [
        ([[1, 2, 3]], ""),
        ([[7, 2, 3]], "once, 3 events ago"),
        ([[7, 2, 7]], "2 times, last 1 event ago"),
        ([[7, 2, 7, 7, 3, 7]], "4 times, last 1 event ago, usually every 2 events"),
        ([[7, 2, 3], [0, 4, 12]], "once, 12 days ago"),
        ([[7, 2, 7, 7, 3], [0, 4, 11, 22, 32]], "3 times, last 10 days ago, usually every 11 days"),
        ([[7, 2, 7], [0, 4, 11], 20], "2 times, last 9 days ago"),
        # All in one basket.
        ([[7, 7, 7], [5, 5, 5], 6], "3 times, last 24 hours ago"),
    ],
)
def test_habits(given, words):
    assert habit(history(*given), 7) == (words and f"in the history {words}")


def test_without_known_times_events_are_counted():
    unknown = History(np.array([7, 2]), np.array([-1, -1]), np.array([1_600_000_000] * 2))
    assert habit(unknown, 7) == "in the history once, 2 events ago"


def test_durations_have_the_largest_unit_of_which_there_are_two():
    found = [duration(seconds) for seconds in (0, 1, 90, 120, 7_200, 100_000, 5 * DAY, 800 * DAY)]
    assert found == [
        "0 seconds", "1 second", "90 seconds", "2 minutes", "2 hours", "28 hours", "5 days",
        "2 years",
    ]  # fmt: skip
