"""Which events of a log a run was trained on, against counting one by one."""

import numpy as np
import polars as pl
import pytest

from blossomrec.config import EvaluationConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import RunError
from blossomrec.run import TRAINED_ON
from blossomrec.training.warm_start.seen import TENSORS, seen_events, write_seen


def split_of(log):
    return make_split(log, EvaluationConfig()).train_end


def prepared(users, items, times, **options):
    table = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    return EventLog.prepare(table, ties="keep", **options)


def trained_on(log, train_end):
    """Time and item of each event that is trained on, by the user's id."""
    ids, found = log.user_vocabulary.read(), {}
    for row, end in enumerate(train_end):
        part = slice(log.offsets[row], log.offsets[row] + end)
        items = log.item_vocabulary.ids(log.items[part])
        found[ids[row]] = list(zip(log.timestamps[part].tolist(), items, strict=True))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_events_up_to_the_last_one_trained_on_are_seen(tmp_path, seed):
    rng = np.random.default_rng(seed)
    count = 400
    users, items = rng.integers(0, 23, count) * 5, rng.integers(0, 30, count)
    # Few seconds, so that many events share one.
    times = np.sort(rng.integers(0, 40, count)) + 1_700_000_000
    some = int(count * 0.6)
    first = prepared(users[:some], items[:some], times[:some])
    both = prepared(users, items, times)
    first_end, both_end = split_of(first), split_of(both)
    write_seen(tmp_path, first, first_end)
    known, ids = trained_on(first, first_end), both.user_vocabulary.read()
    expected = []
    for row, end in enumerate(both_end):
        part = slice(both.offsets[row], both.offsets[row] + end)
        names = both.item_vocabulary.ids(both.items[part])
        events = list(zip(both.timestamps[part].tolist(), names, strict=True))
        mine = known.get(ids[row], [])
        # The history goes on where it ended: what is the same from its beginning on was seen.
        same = 0
        while same < min(len(mine), len(events)) and mine[same] == events[same]:
            same += 1
        expected.append(same)
    found = seen_events(tmp_path, both, both_end)
    assert found.tolist() == expected
    assert 0 < found.sum() < both_end.sum()
    # Users whom the run does not know, and those with nothing new, are among them.
    assert (found == 0).any() or len(known) == len(ids)


def test_times_decide_where_the_log_lost_old_events(tmp_path):
    times = np.arange(8) + 1_700_000_000
    first = prepared([1] * 6 + [2] * 2, range(8), times)
    write_seen(tmp_path, first, np.array([4, 0]))
    # The first three events of user 1 are gone: one that was seen is left.
    later = prepared([1] * 5 + [2] * 2, range(3, 10), [*times[3:], times[6], times[7]])
    assert seen_events(tmp_path, later, np.array([5, 2])).tolist() == [1, 0]


def test_other_units_of_time_are_the_same_time(tmp_path):
    times = np.arange(6) * 60 + 1_700_000_000
    users = [1] * 4 + [2] * 2
    write_seen(tmp_path, prepared(users, range(6), times), np.array([3, 1]))
    in_milliseconds = prepared(users, range(6), times * 1_000)
    assert seen_events(tmp_path, in_milliseconds, np.array([4, 2])).tolist() == [3, 1]


def test_an_order_is_counted(tmp_path):
    write_seen(tmp_path, prepared([1] * 6 + [3] * 2, range(8), range(8)), np.array([4, 2]))
    longer = prepared(["0"] + ["1"] * 9 + ["3"], range(11), range(11))
    assert seen_events(tmp_path, longer, np.array([1, 9, 1])).tolist() == [0, 4, 1]


def test_no_more_is_seen_than_may_be_trained_on(tmp_path):
    log = prepared([1] * 4 + [2] * 2, range(6), np.arange(6) + 1_700_000_000)
    write_seen(tmp_path, log, np.array([4, 2]))
    assert seen_events(tmp_path, log, np.array([3, 2])).tolist() == [3, 2]


def test_a_run_that_does_not_tell_is_refused(tmp_path):
    log = prepared([1] * 4 + [2] * 2, range(6), range(6))
    with pytest.raises(RunError, match=r"does not tell .*give training\.events all"):
        seen_events(tmp_path, log, np.array([3, 1]))
    write_seen(tmp_path, log, np.array([3, 1]))
    path = tmp_path / TRAINED_ON / TENSORS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="damaged"):
        seen_events(tmp_path, log, np.array([3, 1]))
