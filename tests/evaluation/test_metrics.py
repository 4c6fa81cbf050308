import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blossomrec.errors import ConfigError
from blossomrec.evaluation import metrics
from ranking_oracle import metrics_of_list

KS = (1, 3, 10)


@given(st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=6), min_size=1, max_size=8))
def test_accuracy_is_that_of_the_list_shown(cases):
    offsets = np.cumsum([0, *map(len, cases)])
    values = metrics.accuracy(np.concatenate(cases), offsets, KS)
    for number, ranks in enumerate(cases):
        # Rank r: exactly r items that are no targets stand before it.
        shown = []
        for before in range(max(ranks) + 1):
            shown += [True] * ranks.count(before) + [False]
        for k in KS:
            expected = metrics_of_list(shown, k, len(ranks))
            got = {name: values[f"{name}@{k}"][number] for name in metrics.ACCURACY}
            assert got == pytest.approx(expected, abs=1e-12)


def test_single_target_by_hand():
    values = metrics.accuracy(np.array([0, 2, 9, 10]), np.arange(5), (3, 10))
    assert values["hr@3"].tolist() == [1, 1, 0, 0]
    assert values["hr@10"].tolist() == values["recall@10"].tolist() == [1, 1, 1, 0]
    assert values["ndcg@3"].tolist() == [1, 0.5, 0, 0]
    assert values["mrr@10"].tolist() == pytest.approx([1, 1 / 3, 1 / 10, 0])


def test_all_targets_first_is_perfect():
    values = metrics.accuracy(np.zeros(30, dtype=np.int64), np.array([0, 30]), (10, 30, 50))
    assert values["recall@10"].item() == pytest.approx(1 / 3)
    for name in ("ndcg@10", "ndcg@30", "ndcg@50", "recall@30", "hr@10", "mrr@10"):
        assert values[name].item() == pytest.approx(1)


def test_popularity_and_coverage_by_hand():
    top = np.array([[3, 0, 1], [3, 2, -1], [-1, -1, -1]], dtype=np.int32)
    percentiles = np.array([0.0, 0.4, 0.6, 1.0, 0.5])
    values = metrics.popularity(top, percentiles, (1, 3))
    assert values["popularity@1"].tolist() == [1, 1, 0]
    assert values["popularity@3"].tolist() == pytest.approx([1.4 / 3, 0.8, 0])
    assert metrics.coverage(top, 5, (1, 3)) == {"coverage@1": 0.2, "coverage@3": 0.8}


def test_cut_offs_are_sorted_and_distinct():
    assert metrics.check_ks([20, 5, 10, 5]) == (5, 10, 20)


@pytest.mark.parametrize("ks", [(), (0,), (5, -1), (2.5,), (True,)])
def test_wrong_cut_offs_are_named(ks):
    with pytest.raises(ConfigError, match="ks"):
        metrics.check_ks(ks)


def first_place(places, offsets, k):
    """Place of the first target, no more than k."""
    return np.minimum(places[offsets[:-1]], k)


def test_own_metrics_are_measured_besides_the_usual_ones(monkeypatch):
    monkeypatch.setattr(metrics.METRICS, "_registered", {"first-place": first_place})
    assert metrics.METRICS.names() == ("hr", "recall", "ndcg", "mrr", "first-place")
    assert metrics.check_own(["first-place", "ndcg", "first-place"]) == ("first-place",)
    ranks, offsets = np.array([3, 1, 7]), np.array([0, 2, 3])
    usual = metrics.accuracy(ranks, offsets, (2, 5))
    values = metrics.accuracy(ranks, offsets, (2, 5), ("first-place",))
    assert list(values) == [*usual, "first-place@2", "first-place@5"]
    assert values["first-place@2"].tolist() == [1, 2]
    assert values["first-place@5"].tolist() == [1, 5]


@pytest.mark.parametrize("names", [["first-place"], ["ndcg", 3], "ndcg", None, [None]])
def test_unknown_metrics_are_named(names):
    with pytest.raises(ConfigError, match="own_metrics is"):
        metrics.check_own(names)


def test_what_an_own_metric_gives_is_checked(monkeypatch):
    wrong = {"one": lambda *_: 1.0, "short": lambda *_: [1.0], "endless": lambda *_: [1.0, np.nan]}
    monkeypatch.setattr(metrics.METRICS, "_registered", wrong | {"a_b": first_place})
    ranks, offsets = np.array([3, 1, 7]), np.array([0, 2, 3])
    for name in wrong:
        with pytest.raises(ConfigError, match=f"'{name}' gives .*: a finite one for each of 2"):
            metrics.accuracy(ranks, offsets, (2,), (name,))
    with pytest.raises(ConfigError, match="'a_b' has a _ in its name"):
        metrics.check_own(["a_b"])
