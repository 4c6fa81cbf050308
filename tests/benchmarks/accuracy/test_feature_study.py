"""Logs of kinds, what validates without knowing them, and the mean over seeds."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from benchmarks.accuracy import feature_study
from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split
from blossomrec.evaluation import RankingOptions, compare, evaluate
from blossomrec.models.baselines import BASELINES


def test_validation_on_all_kinds_comes_before_the_targets(kind_log):
    split = make_split(kind_log, EvaluationConfig(kinds="buy", last_events=2))
    found = feature_study.validated_on_all(split, 2)
    assert found.test is split.test
    users, first, count = np.unique(found.valid.users, return_index=True, return_counts=True)
    assert set(users) <= set(split.test.users) and (count == 2).all()
    assert (found.valid.history_end[first] == found.train_end[users]).all()
    assert (found.valid.target_end == found.valid.history_end + 1).all()
    assert (found.valid.target_end <= split.train_end[found.valid.users]).all()
    assert found.valid.kinds == () and (found.train_end > 0).all()
    others = np.setdiff1d(np.arange(kind_log.num_users), users)
    assert (found.train_end[others] == split.train_end[others]).all()


def test_evaluations_of_seeds_become_means_of_users(kind_log):
    split = make_split(kind_log, EvaluationConfig(kinds="buy", last_events=2))
    scorer = BASELINES.get("popularity").fit(kind_log, split.train_end)
    first = evaluate(scorer, kind_log, split.test, RankingOptions(filter_seen=False))
    rng = np.random.default_rng(0)
    other = dataclasses.replace(first, ranks=rng.permutation(first.ranks))
    both = feature_study.over_seeds([first, other])
    assert (np.diff(both.users) >= 0).all()
    for name in ("ndcg@10", "hr@10"):
        expected = (first.per_user[name] + other.per_user[name]) / 2
        assert both.per_user[name] == pytest.approx(expected)
    halved = compare(both, feature_study.over_seeds([first, first]))["ndcg@10"]
    assert halved.difference == pytest.approx(compare(other, first)["ndcg@10"].difference / 2)


def test_quantities_become_kinds(tmp_path):
    """Of 5 users those with 50 to 400 events of items that are met 20 times."""
    lengths = [60, 10, 500, 80, 70]
    rows = np.repeat(np.arange(5), lengths)
    events = pl.DataFrame(
        {
            "user_id": rows,
            "item_id": np.arange(len(rows)) % 6,
            "timestamp": 1_600_000_000 + 60 * np.arange(len(rows)),
            "quantity": 1 + np.arange(len(rows)) % 4 // 3,
        }
    )
    rare = events.head(5).with_columns(item_id=pl.lit(99, dtype=pl.Int64))
    pl.concat([events, rare]).write_parquet(tmp_path / "events.parquet")
    folder = tmp_path / "log"
    log = feature_study.prepare_quantities(tmp_path / "events.parquet", folder, users=3)
    assert (log.num_users, log.num_items, log.num_events) == (3, 6, 60 + 80 + 70)
    assert np.bincount(np.asarray(log.kinds))[log.fields.kind("several")] == pytest.approx(
        210 / 4, abs=3
    )


def test_purchases_are_a_kind(tmp_path):
    log = feature_study.prepare_purchases(tmp_path / "log")
    assert set(log.fields.kinds) == {"click", "buy"}
    assert (np.asarray(log.kinds) == log.fields.kind("buy")).mean() == pytest.approx(0.15, abs=0.01)
