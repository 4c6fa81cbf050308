"""Runs with more items, in other rows, taken under load and between kills: no answer mixes them."""

import dataclasses
import os
import random
import shutil
import signal
import time
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
from loads import KILLS, TAKEN, K, Load, metrics, stored, until
from places import metric
from serving_runs import Process, Server, close, write_run

from blossomrec.config import ServingConfig
from blossomrec.data.log import EventLog
from blossomrec.errors import RunError
from blossomrec.files import digest
from blossomrec.recommender import BlossomRec
from blossomrec.run.weights import load_model, save_model
from blossomrec.serving import Client
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.version import version as versions
from blossomrec.serving.version.version import load_version

SENDERS = 3
# Swaps under load.
SWAPS = 4


@dataclasses.dataclass
class Run:
    """A run, the id that answers name it by, and its items."""

    folder: object
    log: object

    def __post_init__(self):
        self.id = read(self.folder).id
        vocabulary = self.log.item_vocabulary
        self.items = vocabulary.ids(np.arange(vocabulary.size)).to_list()
        self.known = set(self.items)
        self.recommender = BlossomRec.from_pretrained(self.folder, self.log, device="cpu")

    def best(self, history, k, **options):
        """What is recommended offline after a history, without items that are unknown."""
        known = [item for item in history if item in self.known]
        frame = self.recommender.recommend_history(known, k, **options)
        return frame.rename({"item_id": "item"}).to_dicts()


def read(folder):
    return load_version(folder, ServingConfig(), Metrics(), device="cpu")


@pytest.fixture(scope="module")
def runs(run, tiny_log, larger_log, tmp_path_factory):
    """Two runs, the second with a tenth more items, each item in another row."""
    larger = write_run(tmp_path_factory.mktemp("larger") / "run", larger_log, seed=1)
    old, new = Run(run, tiny_log), Run(larger, larger_log)
    rows = new.log.item_vocabulary.rows(old.items)
    assert (rows >= 0).all() and (rows != np.arange(len(rows))).mean() > 0.9
    assert len(new.items) == 1.1 * len(old.items)
    return old, new


def follow(link, run):
    """Let a link lead to a run, at once."""
    link.with_suffix(".new").symlink_to(run.folder)
    os.replace(link.with_suffix(".new"), link)


def added(runs):
    old, new = runs
    return [item for item in new.items if item not in old.known]


def check(answers, runs):
    """Each answer is the one that the model it names gives offline."""
    named = {run.id: run for run in runs}
    for model, history, items in answers:
        wanted = named[model].best(history, K, filter_viewed=False)
        assert close(items, wanted), (model, history)


@contextmanager
def under_load(url, path, runs, round_="x"):
    """Clients that append items of both runs and ask; their answers are checked at the end."""
    loads = [Load(url, number, runs[1].items, round_) for number in range(SENDERS)]
    with Client(url) as client:
        for load in loads:
            for user in load.users:
                # One that both know: there is always something to recommend from.
                client.append(user, [{"item": runs[0].items[0], "key": "first"}])
    events = stored(path)
    for load in loads:
        load.histories = {user: [event.item for event in events[user]] for user in load.users}
    for load in loads:
        load.start()
    try:
        yield loads
    finally:
        for load in loads:
            load.over.set()
        for load in loads:
            load.join(60)
    for load in loads:
        check(load.answers, runs)


def test_a_larger_run_is_taken_under_load(runs, tmp_path):
    old, new = runs
    link, path = tmp_path / "current", tmp_path / "events.sqlite"
    follow(link, old)
    with Process(link, path) as server:
        with Client(server.url) as client, under_load(server.url, path, runs) as loads:
            names = [old.id]
            for number in range(SWAPS):
                until(lambda: all(load.answers[-1:] for load in loads))
                counts = [len(load.answers) for load in loads]
                until(
                    lambda c=counts: all(
                        len(load.answers) > n + 3 for load, n in zip(loads, c, strict=True)
                    )
                )
                following = runs[(number + 1) % 2]
                follow(link, following)
                server.signal(signal.SIGHUP)
                until(lambda n=number: metric(metrics(server.url), TAKEN) == n + 1)
                assert client.ready()["model"] == following.id
                names.append(following.id)
            assert names[:2] == [old.id, new.id]
        assert [load.error for load in loads] == [None] * SENDERS
        answers = [answer for load in loads for answer in load.answers]
        assert {answer.model for answer in answers} == {old.id, new.id}
        # Items that the run before did not know counted for the larger one.
        strange = set(added(runs))
        assert any(strange & set(one.history) for one in answers if one.model == new.id)
        assert any(strange & set(one.history) for one in answers if one.model == old.id)


def test_what_came_before_the_swap_counts_after_it(runs, tmp_path, one_thread):
    old, new = runs
    link, strange = tmp_path / "current", added(runs)
    follow(link, old)
    with Server(link, tmp_path / "events.sqlite") as server:
        history, off = [old.items[3], strange[0], old.items[9], *strange[1:4]], old.items[20]
        assert server.append("anna", history)["unknown_items"] == strange[:4]
        server.post("/v1/items", {"off": [off]})
        for following in (new, old, new):
            follow(link, following)
            assert server.reload().id == following.id
            # Encoded anew, then one event further.
            for more in ([], [strange[4]], [old.items[5]]):
                answer = server.append("anna", more) if more else {}
                unknown = [item for item in more if item not in following.known]
                assert answer.get("unknown_items", []) == unknown
                history += more
                wanted = [one for one in following.best(history, 80) if one["item"] != off]
                answer = server.post("/v1/recommend", {"user_id": "anna", "k": 70})
                assert answer["model"] == following.id
                assert close(answer["items"], wanted[:70])
                given = {"history": history, "k": 70}
                assert close(server.recommend(**given), wanted[:70])
            item = following.items[7]
            (found,) = server.post("/v1/similar", {"items": [item], "k": 5})["items"]
            frame = following.recommender.similar_items([item], 6)
            wanted = [one for one in frame["similar_id"].to_list() if one != off]
            assert [one["item"] for one in found["similar"]] == wanted[:5]


def test_no_event_is_lost_between_kills_and_swaps(runs, tmp_path):
    """kill -9 while items of a run to come are appended and runs are swapped."""
    link, path, moments = tmp_path / "current", tmp_path / "events.sqlite", random.Random(11)
    follow(link, runs[0])
    acknowledged, sent = set(), set()
    for round_ in range(KILLS):
        with Process(link, path) as server:
            check_stored(server.url, path, runs)
            with under_load(server.url, path, runs, round_) as loads:
                until(loads[0].acknowledged.__len__)
                end = time.monotonic() + moments.uniform(0, 1.5)
                while time.monotonic() < end:
                    follow(link, moments.choice(runs))
                    server.signal(signal.SIGHUP)
                    time.sleep(moments.uniform(0, 0.3))
                server.signal(signal.SIGKILL)
        events = stored(path)
        for load in loads:
            sent |= {*load.sent, *((user, "first") for user in load.users)}
            acknowledged |= {*load.acknowledged}
            for user, history in load.histories.items():
                items = [event.item for event in events[user]]
                # One append was on its way.
                assert items[: len(history)] == history and len(items) - len(history) <= 3
        keys = [(user, event.key) for user, listed in events.items() for event in listed]
        assert len(keys) == len(set(keys))
        assert acknowledged <= set(keys) <= sent
    with Process(link, path) as server:
        check_stored(server.url, path, runs)


def check_stored(url, path, runs):
    """What a server that has just started answers for every user."""
    answers = []
    with Client(url) as client:
        for user, events in stored(path).items() if path.exists() else ():
            items = client.recommend(user, K, filter_viewed=False)
            answers.append((client.model, tuple(event.item for event in events), items))
    check(answers, runs)


@pytest.mark.parametrize("how", ["link", "files"])
def test_a_run_that_changes_while_it_is_read_is_read_again(
    runs, tiny_log, larger_log, tmp_path, monkeypatch, one_thread, how
):
    """Weights of one run and items of another would be answered with wrong items."""
    old, new = runs
    link, copied = tmp_path / "current", tmp_path / "copied"
    follow(link, old)
    shutil.copytree(old.folder, copied)
    load, calls = versions.load_model, []

    def changed(run, device):
        calls.append(run)
        if how == "link":
            follow(link, new)
        elif len(calls) == 1:
            shutil.rmtree(copied)
            shutil.copytree(new.folder, copied)
        return load(run, device)

    monkeypatch.setattr(versions, "load_model", changed)
    version = read(link if how == "link" else copied)
    wanted = old if how == "link" else new
    assert (version.id, len(version.catalogue)) == (wanted.id, len(wanted.items))
    assert version.model.num_items == len(wanted.items)
    assert len(calls) == (1 if how == "link" else 2)


def test_a_run_that_changes_all_the_time_is_refused(tiny_log, tmp_path, monkeypatch, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    load = versions.load_model

    def changed(run, device):
        model = load(run, device)
        save_model(run, model)
        return model

    monkeypatch.setattr(versions, "load_model", changed)
    with pytest.raises(RunError, match=r"run was written to each of 5 times that it was read"):
        read(run)


def test_the_same_weights_with_other_items_are_another_version(
    run, tiny_log, tiny_events, tmp_path, one_thread
):
    """Rows mean other items, so that an answer must tell which were meant."""
    turned = EventLog.prepare(tiny_events.with_columns(pl.col("item_id").reverse()), tmp_path / "l")
    other = write_run(tmp_path / "run", turned)
    save_model(other, load_model(run))
    assert digest(other / "model.safetensors") == digest(run / "model.safetensors")
    assert read(run).id != read(other).id
    assert read(run).id == read(shutil.copytree(run, tmp_path / "copied")).id
