import json

import numpy as np
import pytest

import list_oracle
from blossomrec.data.features import Numbers
from blossomrec.errors import ConfigError
from blossomrec.evaluation import compare, list_metrics
from blossomrec.evaluation.evaluation import load_evaluation, save_evaluation
from blossomrec.evaluation.list_metrics import CATALOGUE_METRICS, LIST_METRICS, by_column
from blossomrec.measure import evaluate_baseline
from blossomrec.recommender import BlossomRec
from small_options import SMALL

EVERYTHING = (
    "novelty",
    "serendipity",
    "diversity:vector",
    "long-tail",
    "calibration:maker_name",
    "gini",
)


@pytest.fixture(scope="module")
def log():
    """30 users with 3 to 20 events on 25 items; items and users have tables."""
    rng = np.random.default_rng(3)
    rest = [rng.integers(0, 25, length).tolist() for length in rng.integers(3, 21, 29)]
    return list_oracle.log_with_tables([list(range(25)), *rest])


def test_what_is_popular_is_never_a_surprise(log):
    for filter_seen in ("yes", "no"):
        found = evaluate_baseline(
            "popularity", log, own_metrics=["serendipity"], filter_seen=filter_seen, ks=(1, 5, 20)
        )
        assert found.metrics["hr@20"] > 0
        assert not found.lists["serendipity"].any()


def test_all_doors_measure_the_same(log):
    recommender = BlossomRec(**SMALL).fit(log, progress=False)
    found = recommender.evaluate(own_metrics=EVERYTHING, segments=["country"])
    assert list(found.lists) == [name for name in EVERYTHING if name != "gini"]
    for name in EVERYTHING:
        assert f"{name}@10" in found.metrics
    assert list(found.segment_slices) == ["country"]
    usual = recommender.evaluate()
    assert found.ranks.tolist() == usual.ranks.tolist()
    assert found.metrics | usual.metrics == found.metrics
    # They are of users, and so there are tests of them.
    popular = evaluate_baseline("popularity", log, own_metrics=EVERYTHING)
    tests = compare(found, popular)
    test = tests["novelty@10"]
    expected = found.metrics["novelty@10"] - popular.metrics["novelty@10"]
    assert test.difference == pytest.approx(expected)
    assert test.low <= test.difference <= test.high
    assert "gini@10" not in tests


def test_they_are_kept_with_the_evaluation(log, tmp_path):
    found = evaluate_baseline("transitions", log, own_metrics=EVERYTHING, segments=["country"])
    save_evaluation(found, tmp_path / "kept.json")
    loaded = load_evaluation(tmp_path / "kept.json")
    assert loaded.metrics == found.metrics and loaded.intervals == found.intervals
    assert loaded.segment_slices == found.segment_slices
    written = json.loads((tmp_path / "kept.json").read_text())
    [column] = written["segments"]
    assert column["column"] == "country"
    assert [part["value"] for part in column["slices"]] == [
        part.value for part in found.segment_slices["country"]
    ]
    assert column["slices"][0]["metrics"]["novelty@10"] == pytest.approx(
        found.segment_slices["country"][0].metrics["novelty@10"]
    )


def test_evaluations_from_before_there_were_any_are_read(log, tmp_path):
    found = evaluate_baseline("transitions", log)
    save_evaluation(found, tmp_path / "kept.json")
    written = json.loads((tmp_path / "kept.json").read_text())
    for name in ("lists", "catalogue", "segments"):
        assert not written.pop(name)
    (tmp_path / "kept.json").write_text(json.dumps(written))
    assert load_evaluation(tmp_path / "kept.json").metrics == found.metrics


def test_own_metrics_of_lists_are_measured(log, monkeypatch):
    @by_column(Numbers)
    def price(lists, k):
        return lists.mean(lists.column.values[lists.top], k)

    def shown_items(exposure):
        return np.count_nonzero(exposure)

    monkeypatch.setattr(LIST_METRICS, "_registered", {"price": price})
    monkeypatch.setattr(CATALOGUE_METRICS, "_registered", {"shown-items": shown_items})
    asked = ["price:price", "shown-items", "ndcg"]
    found = evaluate_baseline("popularity", log, own_metrics=asked)
    prices = log.item_features["price"].values
    expected = [prices[row[row >= 0][:10]].mean() for row in found.top]
    assert found.metrics["price:price@10"] == pytest.approx(np.mean(expected))
    assert found.metrics["shown-items@10"] == found.metrics["coverage@10"] * log.num_items


@pytest.mark.parametrize("value", [np.nan, [1.0], np.zeros((30, 2))])
def test_what_an_own_metric_of_lists_gives_is_checked(log, monkeypatch, value):
    monkeypatch.setattr(LIST_METRICS, "_registered", {"wrong": lambda lists, k: value})
    with pytest.raises(ConfigError, match=r"'wrong' gives .*: a finite one for each of 30 cases"):
        evaluate_baseline("popularity", log, own_metrics=["wrong"])
    monkeypatch.setattr(CATALOGUE_METRICS, "_registered", {"odd": lambda exposure: value})
    with pytest.raises(ConfigError, match=r"'odd' gives .*: a finite one is needed"):
        evaluate_baseline("popularity", log, own_metrics=["odd"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diversity", "kind category or vector: choose one of diversity:genre, diversity:maker_na"),
        ("diversity:price", "'diversity:price': .* choose one of diversity:genre"),
        ("calibration:vector", "kind category: choose one of calibration:genre, calibration:maker"),
        ("diversity:colour", "'diversity:colour': .* choose one of diversity:genre"),
        ("novelty:genre", "novelty is not measured by a column"),
        ("gini:genre", "gini is not measured by a column"),
        ("novelti", "own_metrics is 'novelti': choose one of hr, .*novelty, .*gini"),
        (3, "own_metrics is 3: a list of names"),
    ],
)
def test_wrong_names_and_columns_are_named(log, name, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_baseline("popularity", log, own_metrics=[name])


def test_a_log_without_what_is_needed_is_refused(tiny_log):
    with pytest.raises(ConfigError, match=r"'diversity:genre': .* without one; .* --items"):
        evaluate_baseline("popularity", tiny_log, own_metrics=["diversity:genre"])
    with pytest.raises(ConfigError, match=r"segments is 'country': .* --users"):
        evaluate_baseline("popularity", tiny_log, segments=["country"])


@pytest.mark.parametrize("name", ["novelty", "gini"])
def test_a_sampled_ranking_has_no_lists(log, name):
    with pytest.raises(ConfigError, match=f"{name!r}.*: uni100 ranks among sampled items"):
        evaluate_baseline("popularity", log, own_metrics=[name], ranking="uni100")


def test_a_name_that_is_taken_is_refused(log, monkeypatch):
    monkeypatch.setattr(LIST_METRICS, "_registered", dict.fromkeys(["ndcg", "popularity"], max))
    for name in ("ndcg", "popularity"):
        with pytest.raises(ConfigError, match=f"'{name}', of which there are two"):
            evaluate_baseline("popularity", log, own_metrics=[name])


def test_a_name_that_reads_like_one_of_a_sampled_ranking_is_refused(log, monkeypatch):
    for registry in (LIST_METRICS, CATALOGUE_METRICS):
        monkeypatch.setattr(registry, "_registered", {"mean_price": max})
        with pytest.raises(ConfigError, match="'mean_price' has a _ in its name: use a hyphen"):
            evaluate_baseline("popularity", log, own_metrics=["mean_price"])
        monkeypatch.undo()


def test_the_page_of_definitions_knows_all_of_them():
    described = list_metrics.__doc__
    for name in (*LIST_METRICS.names(), *CATALOGUE_METRICS.names()):
        assert f"``{name}" in described


def test_the_commands_take_and_compare_them(log, cli, tmp_path):
    for name in ("transitions", "popularity"):
        shown = cli(
            *("evaluate", name, "--log", log.folder, "--out", tmp_path / name),
            *("--own-metrics", "novelty,diversity:genre", "gini", "--segments", "country,tags"),
        )
        for word in ("novelty@10", "diversity:genre@10", "gini@10", "By tags of the user"):
            assert word in shown
    shown = cli("compare", tmp_path / "transitions", tmp_path / "popularity")
    assert "diversity:genre@5" in shown and "By country of the user" in shown
