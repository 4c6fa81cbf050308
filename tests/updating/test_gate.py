"""A new run and the one in use on the same events: pairs, unknown items, the tolerance."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest
import torch
from daily_world import CONFIG, DAY, START, World, walks

from blossomrec.config import with_options
from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import RunError
from blossomrec.models import build_model
from blossomrec.recommender import BlossomRec
from blossomrec.run.weights import load_model, save_model
from blossomrec.updating.gate import GrownCatalogue, judge, newest_cases


@pytest.fixture
def grown(world):
    """The world after a day, its log, and a run that was trained from the one in use."""
    world.a_day()
    line = world.update()
    return world, EventLog.open(world.log), world.runs / line["run"], world.runs / "00001"


def test_both_are_measured_on_the_newest_events_of_the_same_users(grown):
    _, log, new, used = grown
    cases = newest_cases(used, log, make_split(log, CONFIG.evaluation))
    names = log.user_vocabulary.ids(cases.users).to_list()
    assert sorted(names) == sorted([*(f"user {n}" for n in range(20)), "new on day 1"])
    targets = log.offsets[cases.users] + cases.history_end
    assert (log.timestamps[targets] >= START + DAY).all()
    found = judge(new, used, log, tolerance=0.0, most=100).metrics
    assert found["users"] == found["events"] == 21
    assert found["difference"] == pytest.approx(found["new"] - found["used"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert judge(new, used, log, tolerance=0.0, most=5).metrics["users"] == 5


def test_a_run_is_as_good_as_itself_and_the_tolerance_decides(grown):
    _, log, new, used = grown
    same = judge(new, new, log, tolerance=0.0, most=100)
    assert same.taken and same.metrics["difference"] == 0
    worse = load_model(new)
    with torch.no_grad():
        # Recommends what it recommended least.
        worse.item_embeddings.weight.neg_()
    save_model(new, worse)
    refused = judge(new, used, log, tolerance=0.01, most=100)
    assert not refused.taken and refused.metrics["new"] < refused.metrics["used"]
    assert "worse by more than 1.0%" in refused.why and "that in use 0." in refused.why
    assert judge(new, used, log, tolerance=1.0, most=100).taken


def test_without_new_events_all_test_events_count(world):
    log, run = EventLog.open(world.log), world.runs / "00001"
    split = make_split(log, CONFIG.evaluation)
    assert newest_cases(run, log, split) is split.test
    (run / "trained_on" / "seen.safetensors").unlink()
    assert newest_cases(run, log, split) is split.test


def test_a_log_prepared_anew_is_refused(grown):
    world, _, new, used = grown
    other = EventLog.prepare(walks(seed=5).filter(pl.col("item_id") > 105), world.log)
    with pytest.raises(RunError, match="begin a new folder of runs"):
        judge(new, used, other, tolerance=0.0, most=10)


SEES = {"time_gap": "on", "request_time": "on", "repeats": "on"}


@pytest.mark.parametrize("options", [{}, SEES], ids=["ids", "all"])
def test_new_items_are_skipped_in_histories_and_ranked_last(tmp_path, options, one_thread):
    """As a server does it that knows the old items alone."""
    world = World(tmp_path)
    log = EventLog.prepare(walks(), world.log)
    config = with_options(CONFIG, options)
    torch.manual_seed(3)
    model = build_model(config.model, log.num_items, log.tables).eval()
    n, grown = log.num_items, log.num_items + 3
    scorer = GrownCatalogue(model, grown)
    rng = np.random.default_rng(0)
    with_new, without = [], []
    for length in (1, 5, 9):
        items = rng.integers(0, n, length)
        times = START + 100 * np.arange(length)
        plain = History(items, times=times).asked_for(START + 5_000)
        # New items at the beginning, in the middle and at the end, where the moment is told.
        places = np.sort(rng.integers(0, length + 1, 3))
        mixed = np.insert(items, [*places, length], n + 1)
        moments = np.insert(times, [*places, length], 0)
        told = History(mixed, times=moments).asked_for(START + 5_000)
        with_new.append(told)
        without.append(plain)
    one, other = (pack(each, model.inputs) for each in (with_new, without))
    with torch.no_grad():
        queries = scorer.queries(one)
        assert torch.allclose(queries, model.queries(other), atol=1e-6)
        scores = scorer.scores(queries, 0, grown)
        assert torch.allclose(scores[:, :n], model.scores(queries, 0, n))
        assert torch.isneginf(scores[:, n:]).all()
        assert torch.isneginf(scorer.scores(queries, n + 1, grown)).all()
        if model.own_history is not None:
            own, known = scorer.history_items(one), model.history_items(other)
            assert own is not None and known is not None
            assert torch.equal(own.items, known.items) and torch.equal(own.shares, known.shares)


def test_users_whose_items_are_all_new_are_in_nobodys_favour(world):
    for user in range(3):
        world.add(f"stranger {user}", [5_000, 5_001, 5_002, 5_003])
    line = world.update()
    assert line["taken"] and "nobody has a history" in line["why"]


def test_the_metrics_are_those_of_a_plain_evaluation(world):
    """Where no item is new, both are evaluated as ``evaluate`` does it."""
    for user in range(30):
        world.add(f"user {user}", [100 + user, 101 + user])
    line = world.update()
    log = EventLog.open(world.log)
    for name, which in (("00001", "used"), (line["run"], "new")):
        run = BlossomRec.from_pretrained(world.runs / name)
        with warnings.catch_warnings():
            # The one in use was trained on the log as it was.
            warnings.simplefilter("ignore", UserWarning)
            plain = run.evaluate(log=log)
        assert line["metrics"][which] == pytest.approx(plain.metrics["ndcg@10"])
