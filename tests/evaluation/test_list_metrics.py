import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import list_oracle
from blossomrec.data.features import Categories, Titles, Vectors
from blossomrec.data.split import Cases
from blossomrec.evaluation import Asked, RankingOptions, evaluate, list_metrics, lists
from blossomrec.evaluation.lists import Lists, Pairs, Training
from ranking_oracle import TableScorer

KS = (1, 3, 6)
NAMES = (
    "novelty",
    "serendipity",
    "long-tail",
    "diversity:genre",
    "diversity:maker_name",
    "diversity:vector",
    "calibration:genre",
    "calibration:maker_name",
)


def measured(log, cases, table, train_end, filter_seen, names=NAMES):
    options = RankingOptions(ks=KS, filter_seen=filter_seen)
    found = evaluate(TableScorer(table), log, cases, options)
    asked = Asked(own_metrics=(*names, "gini")).checked(log, "full")
    return asked.added(found, log, cases, train_end)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_metrics_of_lists_agree_with_plain_loops(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    num_items = data.draw(st.integers(2, 15))
    lengths = data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
    rest = (rng.integers(0, num_items, length).tolist() for length in lengths)
    log = list_oracle.log_with_tables([[0, 1, 1], *rest], seed=int(rng.integers(99)))
    sizes = np.diff(log.offsets)
    ends = rng.integers(1, sizes)
    # Of some users nothing was trained on.
    train_end = rng.integers(0, ends + 1)
    train_end[0] = 1
    cases = Cases(np.arange(log.num_users), ends, rng.integers(ends + 1, sizes + 1))
    table = rng.integers(0, 9, (log.num_items, log.num_items)).astype(float)
    filter_seen = data.draw(st.booleans())
    found = measured(log, cases, table, train_end, filter_seen)

    histories = [log.history(user).items.tolist() for user in range(log.num_users)]
    trained = [items[:end] for items, end in zip(histories, train_end, strict=True)]
    features, rows = log.item_features, range(log.num_items)
    names = {column: [features[column][row] for row in rows] for column in ("genre", "maker_name")}
    vectors = {column: list_oracle.one_hot(names[column]) for column in names}
    vectors["vector"] = [
        one if np.isfinite(one).all() and one.any() else None for one in features["vector"].values
    ]
    for case, (history, end) in enumerate(zip(histories, ends, strict=True)):
        targets = set(history[end : cases.target_end[case]])
        left_out = set(history[:end]) - targets if filter_seen else set()
        popular = list_oracle.most_popular(trained, left_out, log.num_items)
        for column, k in enumerate(KS):
            shown = [item for item in found.top[case, :k].tolist() if item >= 0]
            expected = {
                "novelty": list_oracle.novelty(shown, trained),
                "serendipity": list_oracle.serendipity(shown, targets, k, popular),
                "long-tail": list_oracle.long_tail(shown, trained, log.num_items),
            }
            for name, known in vectors.items():
                expected[f"diversity:{name}"] = list_oracle.diversity(shown, known)
            for name, known in names.items():
                divergence = list_oracle.calibration(shown, history[:end], known)
                expected[f"calibration:{name}"] = divergence
            got = {name: found.lists[name][case, column] for name in NAMES}
            assert got == pytest.approx(expected, abs=1e-6)
    for column, k in enumerate(KS):
        shown = found.top[:, :k].ravel().tolist()
        exposure = [shown.count(item) for item in rows]
        assert found.catalogue["gini"][column] == pytest.approx(list_oracle.gini(exposure))


def test_cases_are_looked_at_in_pieces(monkeypatch):
    rng = np.random.default_rng(1)
    rest = [rng.integers(0, 40, length).tolist() for length in rng.integers(3, 30, 25)]
    log = list_oracle.log_with_tables([list(range(40)), *rest])
    sizes = np.diff(log.offsets)
    # Two cases of each user, as with last_events 2.
    users = np.repeat(np.arange(log.num_users), 2)
    ends = np.stack([sizes - 2, sizes - 1], 1).ravel()
    cases = Cases(users, ends, ends + 1)
    table = rng.random((40, 40))
    whole = measured(log, cases, table, sizes - 2, True)
    monkeypatch.setattr(lists, "PIECE_ELEMENTS", 50)
    monkeypatch.setattr(list_metrics, "VECTOR_ELEMENTS", 40)
    monkeypatch.setattr("blossomrec.evaluation.candidates.PIECE_EVENTS", 50)
    parts = measured(log, cases, table, sizes - 2, True)
    for name in NAMES:
        assert whole.lists[name].shape == (len(users), len(KS))
        assert np.array_equal(whole.lists[name], parts.lists[name]), name
        # Means over users, with intervals, as of every other metric.
        means = whole.lists[name].reshape(-1, 2, len(KS)).mean(1)
        for column, k in enumerate(KS):
            assert whole.per_user[f"{name}@{k}"] == pytest.approx(means[:, column])
            low, high = whole.intervals[f"{name}@{k}"]
            assert low <= whole.metrics[f"{name}@{k}"] <= high
    assert "gini@3" in whole.metrics and "gini@3" not in whole.intervals


# Items 0 to 4 with 6, 3, 1, 0 and 0 events of four users in training.
TRAINING = Training(np.array([6, 3, 1, 0, 0]), np.array([4, 2, 1, 0, 0]), 4)


def shown(top, *, targets=(), history=(), filter_seen=False, column=None):
    """Lists from pairs of a case and an item."""
    pairs = [Pairs(*np.array(one, dtype=np.int64).reshape(-1, 2).T) for one in (targets, history)]
    return Lists(np.array(top, dtype=np.int32), *pairs, filter_seen, TRAINING, column)


def test_novelty_and_long_tail_by_hand():
    found = shown([[0, 1, 2], [2, 3, -1], [-1, -1, -1]])
    assert list_metrics.novelty(found, 3).tolist() == [1, 2, 0]
    assert list_metrics.novelty(found, 1).tolist() == [0, 2, 0]
    # The items 0 and 1 have nine of the ten events, item 0 alone only six.
    assert list_metrics.long_tail(found, 3) == pytest.approx([1 / 3, 1, 0])
    assert TRAINING.places.tolist() == [0, 1, 2, 3, 4]


def test_serendipity_by_hand():
    top = [[2, 1, 0], [2, 1, 0]]
    found = shown(top, targets=[(0, 2), (0, 1), (1, 1)])
    # Of three items popularity would show 0, 1 and 2, of two 0 and 1.
    assert list_metrics.serendipity(found, 3).tolist() == [0, 0]
    assert list_metrics.serendipity(found, 2).tolist() == [0.5, 0]
    assert list_metrics.serendipity(found, 1).tolist() == [1, 0]
    # Who has seen item 0, twice, would be shown 1 and 2. A target stays, seen or not.
    history = [(0, 0), (0, 0), (0, 2), (1, 0)]
    found = shown(top, targets=[(0, 2), (1, 1)], history=history, filter_seen=True)
    assert list_metrics.serendipity(found, 2).tolist() == [0, 0]
    assert list_metrics.serendipity(found, 1).tolist() == [1, 0]


def test_diversity_by_hand():
    # Item 0 is a and b, 1 is b, 2 is c, 3 is not known, 4 is b.
    values, offsets = np.array([1, 2, 2, 3, 0, 2], np.int32), np.array([0, 2, 3, 4, 5, 6])
    categories = Categories(Titles.of(["a", "b", "c"]), values, offsets)
    found = shown([[0, 1, 2], [1, 4, 3], [3, 0, -1]], column=categories)
    assert list_metrics.diversity(found, 3) == pytest.approx([1 - 0.5**0.5 / 3, 0, 0])
    vectors = np.array([[1, 0], [0, 2], [-3, 0], [np.nan, 0], [0, 0]], np.float32)
    found = shown([[0, 1, 2], [0, 2, 3], [4, 0, -1]], column=Vectors(vectors))
    assert list_metrics.diversity(found, 3) == pytest.approx([4 / 3, 2, 0])


def test_calibration_by_hand():
    values, offsets = np.array([1, 2, 2, 1, 0, 2], np.int32), np.array([0, 2, 3, 4, 5, 6])
    categories = Categories(Titles.of(["a", "b"]), values, offsets)
    top = [[2, 1], [2, 0], [3, -1], [2, 1]]
    # Half a and half b; a alone; a alone; nothing that is known.
    history = [(0, 1), (0, 2), (1, 2), (2, 2), (2, 2), (3, 3)]
    found = shown(top, history=history, column=categories)
    half = 0.99 * 0.75 + 0.01
    expected = [0, -np.log(half), np.log(100), 0]
    assert list_metrics.calibration(found, 2) == pytest.approx(expected)
    only_a = -0.5 * np.log(2 * (0.99 + 0.005)) - 0.5 * np.log(2 * 0.005)
    assert list_metrics.calibration(found, 1) == pytest.approx([only_a, 0, np.log(100), 0])


def test_gini_by_hand():
    assert list_metrics.gini(np.array([3, 3, 3])) == 0
    assert list_metrics.gini(np.array([0, 7, 0, 0])) == pytest.approx(1)
    assert list_metrics.gini(np.array([1, 0, 3])) == pytest.approx(0.75)
    assert list_metrics.gini(np.array([5])) == list_metrics.gini(np.zeros(3, dtype=int)) == 0


def test_nothing_but_what_was_asked_for_is_measured():
    log = list_oracle.log_with_tables([[0, 1, 2, 3], [1, 2, 3, 0]])
    cases = Cases(np.arange(2), np.array([2, 2]), np.array([3, 3]))
    table = np.arange(16.0).reshape(4, 4)
    found = measured(log, cases, table, np.array([2, 2]), True, names=("novelty",))
    assert list(found.lists) == ["novelty"]
    bare = dataclasses.replace(found, lists={}, catalogue={})
    assert set(found.metrics) - set(bare.metrics) == {
        f"{name}@{k}" for name in ("novelty", "gini") for k in KS
    }
