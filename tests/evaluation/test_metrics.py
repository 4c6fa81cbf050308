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
