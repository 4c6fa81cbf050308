"""Explanations by the library."""

from __future__ import annotations

import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.recommender import BlossomRec
from blossomrec.run import run_version
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def explained_run(tiny_log, tmp_path_factory):
    run = tmp_path_factory.mktemp("explained") / "run"
    return BlossomRec(**SMALL).fit(tiny_log, run, progress=False)


def test_the_parts_add_up_to_the_score_that_is_recommended_by(explained_run, tiny_log):
    for row in (3, 59):
        user = tiny_log.user_vocabulary.ids([row])[0]
        best = explained_run.recommend([user], 1)
        found = explained_run.explain(best["item_id"][0], user=user, k=2)
        assert found["score"] == pytest.approx(best["score"][0], abs=1e-4)
        total = sum(found["contributions"]) + found["rest"]
        assert total == pytest.approx(found["score"], abs=1e-4)
        events = tiny_log.item_vocabulary.ids(tiny_log.history(row).items).to_list()
        assert found["length"] == len(events) and found["start"] == max(0, len(events) - 20)
        assert found["items"] == events[found["start"] :]
        largest = sorted(found["contributions"], reverse=True)[:2]
        assert [one["contribution"] for one in found["events"]] == pytest.approx(largest, abs=1e-5)
        assert found["model"] == run_version(explained_run._folder)


def test_of_a_model_without_a_folder_there_is_no_version(tiny_log):
    temporary = BlossomRec(**SMALL).fit(tiny_log, progress=False)
    assert temporary.explain(50_003, history=[50_010])["model"] is None


def test_unknown_items_of_a_history_are_skipped_or_refused(explained_run):
    with pytest.warns(UserWarning, match="1 of 3 items of the history are unknown") as caught:
        found = explained_run.explain(50_003, history=[50_010, 5, 50_017])
    assert caught[0].filename == __file__
    assert found == explained_run.explain(50_003, history=["50010", 50_017])
    with pytest.raises(DataError, match="unknown item 5"):
        explained_run.explain(50_003, history=[50_010, 5], unknown="refuse")


@pytest.mark.filterwarnings("ignore:.*unknown and skipped")
@pytest.mark.parametrize(
    "item, given, error, words",
    [
        (50_003, {}, ConfigError, "give either user or history"),
        (50_003, {"user": 1001, "history": [50_003]}, ConfigError, "give either user or history"),
        (4, {"history": [50_003]}, DataError, "unknown item 4"),
        (50_003, {"user": 5}, DataError, "unknown user 5"),
        (50_003, {"history": []}, DataError, "the history .*has no item that the model knows"),
        (50_003, {"history": [5]}, DataError, "the history 5 has no item that the model knows"),
        (50_003, {"history": [50_003], "k": 0}, ConfigError, "k is 0: it must be at least 1"),
        (50_003, {"history": [50_003], "kind": "buy"}, ConfigError, "kind is 'buy'"),
    ],
)
def test_what_is_wrong_is_said(explained_run, item, given, error, words):
    with pytest.raises(error, match=words):
        explained_run.explain(item, **given)


def test_only_a_fitted_model_with_blossom_attention_is_explained(tiny_log):
    with pytest.raises(RunError, match="has not been fitted"):
        BlossomRec().explain(1, history=[2])
    dense = BlossomRec(**SMALL | {"attention": "full"}).fit(tiny_log, progress=False)
    with pytest.raises(ConfigError, match="attention full cannot be explained"):
        dense.explain(50_003, history=[50_010])


def test_a_model_is_told_moment_and_kind(tiny_events, tmp_path):
    import polars as pl

    kinds = tiny_events.with_columns(kind=pl.Series(["view", "buy"] * (len(tiny_events) // 2)))
    log = EventLog.prepare(kinds, tmp_path / "log", kind="kind")
    told = {"time_gap": "auto", "request_time": "auto", "request_kind": "auto"}
    seeing = BlossomRec(**SMALL | told | {"event_kinds": "auto"}).fit(log, progress=False)
    user, last = log.user_vocabulary.ids([40])[0], log.last_second
    for options in ({}, {"at": last + 86_400}, {"kind": "buy"}):
        best = seeing.recommend([user], 1, **options)
        found = seeing.explain(best["item_id"][0], user=user, **options)
        assert found["score"] == pytest.approx(best["score"][0], abs=1e-4)
    events = {"item_id": [50_003, 50_010], "timestamp": [last - 60, last], "kind": ["view", "buy"]}
    best = seeing.recommend_history(events, 1, at=last + 60, kind="buy")
    found = seeing.explain(best["item_id"][0], history=events, at=last + 60, kind="buy")
    assert found["score"] == pytest.approx(best["score"][0], abs=1e-4)
