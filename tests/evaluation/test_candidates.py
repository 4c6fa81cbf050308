import numpy as np
import polars as pl
import pytest

from blossomrec.config import EvaluationConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, make_split
from blossomrec.errors import DataError
from blossomrec.evaluation import candidates
from blossomrec.evaluation.candidates import (
    before_cases,
    popularity_percentiles,
    sample_unseen,
    targets_of,
)
from blossomrec.measure import evaluate_baseline
from ranking_oracle import prepared


@pytest.fixture(scope="module")
def long_log():
    """Users who met 1, 50, 199, 200 and 250 of 300 items."""
    rng = np.random.default_rng(0)
    histories = [rng.permutation(300)[:count].tolist() for count in (1, 50, 199, 200, 250)]
    return prepared([*histories, list(range(300))])


def test_unseen_items_are_distinct_and_never_met(long_log):
    sampled = sample_unseen(long_log, np.arange(6), seed=0)
    for user, left in enumerate((299, 250, 101, 100, 50, 0)):
        drawn = sampled[user][sampled[user] >= 0]
        assert len(drawn) == len(set(drawn.tolist())) == min(100, left)
        assert not set(drawn.tolist()) & set(long_log.history(user).items.tolist())
    assert (sampled[5] == -1).all()


def test_draw_depends_on_seed_and_user_alone(long_log, monkeypatch):
    sampled = sample_unseen(long_log, np.arange(6), seed=0)
    assert (sample_unseen(long_log, np.array([4, 1, 2]), seed=0) == sampled[[4, 1, 2]]).all()
    monkeypatch.setattr(candidates, "PIECE_EVENTS", 1)
    assert (sample_unseen(long_log, np.arange(6), seed=0) == sampled).all()
    other = sample_unseen(long_log, np.arange(6), seed=1)
    assert all((other[user] != sampled[user]).any() for user in range(3))
    assert (sampled[0] != sampled[1]).any()


def test_draw_is_uniform_over_unseen_items():
    rng = np.random.default_rng(1)
    log = prepared(
        [[0, 1], *(rng.permutation(150)[:30].tolist() for _ in range(400)), [*range(150)]]
    )
    sampled = sample_unseen(log, np.arange(1, 401), seed=0)
    drawn = np.bincount(sampled.ravel(), minlength=150)
    # Each user draws an unseen item with probability 100 / 120.
    unseen = 400 - np.bincount(
        np.concatenate([log.history(u).items for u in range(1, 401)]), minlength=150
    )
    deviation = (drawn - unseen * 100 / 120) / np.sqrt(unseen * (100 / 120) * (20 / 120))
    assert np.abs(deviation).max() < 4.5
    assert 0.7 < deviation.std() < 1.3


def test_order_of_the_draw_is_uniform_too():
    log = prepared([[0], *([[1]] * 3000), [*range(1, 140)]])
    first = sample_unseen(log, np.arange(1, 3001), seed=5)[:, 0]
    counts = np.bincount(first, minlength=140)
    expected = 3000 / 139
    assert ((counts - expected) ** 2 / expected).sum() < 210  # 139 degrees, p about 1e-4


def test_targets_are_distinct_items_in_order_of_row():
    log = prepared([[0, 1, 2, 1, 1, 3], [4, 5], [5, 0, 0]])
    cases = Cases(np.array([0, 1, 2]), np.array([2, 1, 1]), np.array([6, 2, 3]))
    targets = targets_of(log, cases)
    assert targets.offsets.tolist() == [0, 3, 4, 5]
    for case, (user, start) in enumerate(((0, 2), (1, 1), (2, 1))):
        expected = sorted(set(log.history(user).items[start:].tolist()))
        assert targets.items[targets.offsets[case] : targets.offsets[case + 1]].tolist() == expected


def test_cases_without_history_or_target_are_refused():
    log = prepared([[0, 1, 2], [4, 5]])
    with pytest.raises(DataError, match="no case"):
        targets_of(log, Cases(*np.zeros((3, 0), dtype=np.int64)))
    with pytest.raises(DataError, match=r"case 1 \(user row 1\) predicts events 0 to 1"):
        targets_of(log, Cases(np.array([0, 1]), np.array([1, 0]), np.array([2, 1])))


def test_seen_pairs_come_whole_in_any_pieces(long_log, monkeypatch):
    users, ends = np.array([2, 0, 4]), np.array([10, 1, 250])
    for piece in (1, 7, 1 << 20):
        monkeypatch.setattr(candidates, "PIECE_EVENTS", piece)
        pieces = list(candidates.seen_pieces(long_log, users, ends))
        rows, items = (np.concatenate(column) for column in zip(*pieces, strict=True))
        for row in range(3):
            expected = long_log.history(int(users[row])).items[: ends[row]]
            assert items[rows == row].tolist() == expected.tolist()


def test_popularity_percentile_leaves_held_out_events_aside():
    # Events that count: item a 3 times, b and c once each, d never (only as a target).
    log = prepared([["a", "b", "d"], ["a", "c", "d"], ["a", "d"]])
    cases = Cases(np.array([0, 1, 2]), np.array([2, 2, 1]), np.array([3, 3, 2]))
    percentiles = popularity_percentiles(log, before_cases(log, cases))
    of = dict(zip(log.item_vocabulary.ids(np.arange(4)).to_list(), percentiles, strict=True))
    assert of == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0})
    assert percentiles.mean() == pytest.approx(0.5)
    # Of a user with two cases nothing counts from the first one on: b never.
    cases = Cases(np.array([0, 0, 1, 2]), np.array([1, 2, 2, 1]), np.array([2, 3, 3, 2]))
    percentiles = popularity_percentiles(log, before_cases(log, cases))
    of = dict(zip("abcd", percentiles[log.item_vocabulary.rows([*"abcd"])], strict=True))
    assert of == pytest.approx({"a": 1.0, "b": 1 / 6, "c": 2 / 3, "d": 1 / 6})


def test_popularity_is_that_of_training_events(monkeypatch):
    # By time 0 .. 7 are trained on. The last user comes in the test period, and has no case.
    items = [["a", "a", "b", "d"], ["a", "b", "c", "d"], ["d", "d"]]
    times = [[0, 1, 2, 10], [3, 4, 8, 11], [12, 13]]
    events = [
        (user, item, time)
        for user, (those, at) in enumerate(zip(items, times, strict=True))
        for item, time in zip(those, at, strict=True)
    ]
    schema = ["user_id", "item_id", "timestamp"]
    log = EventLog.prepare(pl.DataFrame(events, schema=schema, orient="row"))
    options = {"split": "global-time", "valid_share": 0.1, "test_share": 0.4}
    split = make_split(log, EvaluationConfig(**options))
    assert split.train_end.tolist() == [3, 2, 0] and split.test.users.tolist() == [0, 1]
    rows = log.item_vocabulary.rows([*"abcd"])
    wanted = pytest.approx([1.0, 2 / 3, 1 / 6, 1 / 6])
    for piece in (1, 3, 1 << 20):
        monkeypatch.setattr(candidates, "PIECE_EVENTS", piece)
        assert popularity_percentiles(log, split.train_end)[rows].tolist() == wanted
    found = evaluate_baseline("popularity", log, ks=(2,), filter_seen="no", **options)
    assert [log.item_vocabulary.ids(top).to_list() for top in found.top] == [["a", "b"]] * 2
    assert found.metrics["popularity@2"] == pytest.approx(5 / 6)
