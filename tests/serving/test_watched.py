"""What comes of what is served: hits, what is known of users, drift, versions; nothing of it kept
longer than it may be."""

import dataclasses
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from places import metric
from serving_runs import Server, write_run

from blossomrec.errors import RunError
from blossomrec.rules import Rules
from blossomrec.serving.refusals import without_folders
from blossomrec.serving.watch import lists as last_lists
from blossomrec.serving.watch.lists import LastList, LastLists
from blossomrec.serving.watch.popularity import BUCKETS, PopularityDrift, TrainedPopularity
from blossomrec.serving.watch.records import MOST_REFUSED, MOST_VERSIONS, VersionRecords


def measured(server, name, **labels):
    """The value of a measure."""
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    line = f"blossomrec_{name}{{{inside}}}" if inside else f"blossomrec_{name}"
    return metric(server.client.get("/metrics").text, line)


def in_use(server):
    return server.client.get("/v1/versions").json()["versions"][0]


def listed(server, user, **body):
    return [one["item"] for one in server.recommend(user_id=user, **body)]


def within(version):
    return {one["within"]: one["events"] for one in version["hits"]}


def test_hits_are_counted_at_their_ranks_by_version(server, item_ids):
    server.append("anna", item_ids[:5])
    assert in_use(server)["followed"] == 0
    shown = listed(server, "anna", k=10)
    other = next(item for item in item_ids if item not in shown)
    # Spelt in another way it is the same item.
    server.append("anna", [str(shown[0]), shown[6], other, "new"])
    version = in_use(server)
    assert (version["lists"], version["followed"]) == (1, 4)
    assert within(version) == {1: 1, 5: 1, 10: 2, 20: 2, 50: 2, 100: 2}
    assert version["hits"][0]["rate"] == 0.25 and version["hits"][2]["rate"] == 0.5
    assert version["mrr"] == pytest.approx((1 + 1 / 7) / 4)
    name = version["model"]
    assert measured(server, "recommended_lists_total", version=name, by="model") == 1
    assert measured(server, "followed_events_total", version=name) == 4
    assert measured(server, "hits_total", version=name, within="1") == 1
    assert measured(server, "hits_total", version=name, within="10") == 2
    ranks = measured(server, "reciprocal_ranks_total", version=name)
    assert ranks == pytest.approx(1 + 1 / 7)


def test_without_a_list_of_the_user_nothing_follows(server, item_ids):
    server.append("anna", item_ids[:5])
    server.append("ben", item_ids[:5])
    shown = listed(server, "anna")
    server.recommend(history=item_ids[:5])
    server.append("ben", shown[:1])
    version = in_use(server)
    assert (version["lists"], version["followed"], version["mrr"]) == (2, 0, None)
    assert all(one["rate"] is None for one in version["hits"])


def test_the_last_list_counts_and_each_event_once(server, item_ids):
    server.append("anna", item_ids[:5])
    first = listed(server, "anna", k=3)
    last = listed(server, "anna", k=3, exclude=first)
    events = [{"item": first[0], "key": "a"}, {"item": last[1], "key": "b"}]
    server.append("anna", events)
    assert (in_use(server)["followed"], within(in_use(server))[5]) == (2, 1)
    # Sent again, alone and with others that are new.
    server.append("anna", events)
    assert in_use(server)["followed"] == 2
    answer = server.append("anna", [*events, {"item": last[2], "key": "c"}, "new"])
    assert (answer["stored"], answer["repeated"]) == (2, 2)
    until(lambda: in_use(server)["followed"] == 4)
    assert within(in_use(server))[5] == 2
    assert measured(server, "unknown_items_total", where="events") == 1


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_event_before_the_list_is_not_one_that_follows(server, item_ids):
    now = int(time.time())
    server.append("anna", [{"item": item_ids[0], "timestamp": now - 1_000}])
    shown = listed(server, "anna")
    server.append("anna", [{"item": shown[0], "timestamp": now - 500}])
    assert in_use(server)["followed"] == 0
    server.append("anna", [{"item": shown[1], "timestamp": now + 5}])
    assert (in_use(server)["followed"], within(in_use(server))[5]) == (1, 1)


@pytest.mark.parametrize("size", [1, 10**3, 10**6, 10**9])
def test_the_time_of_an_event_is_told_in_any_unit(size):
    last = LastList("v", 1_700_000_000.9, (1, 2))
    assert last.is_after(1_699_999_999 * size)
    assert not last.is_after(1_700_000_000 * size)
    # A number that tells an order only, or nothing.
    assert not last.is_after(17) and not last.is_after(None)


def test_who_is_deleted_has_no_list(server, item_ids, monkeypatch):
    # At once, not when the engine next looks for users who are gone.
    monkeypatch.setattr(LastLists, "drop_deleted", lambda *_: iter(()))
    server.append("anna", item_ids[:5])
    shown = listed(server, "anna")
    assert measured(server, "remembered_lists") == 1
    server.client.delete("/v1/users/anna")
    assert measured(server, "remembered_lists") == 0
    server.append("anna", shown[:1])
    assert in_use(server)["followed"] == 0


def test_who_is_deleted_by_another_process_has_no_list(run, place, item_ids, one_thread):
    with Server(run, place) as here, Server(run, place) as there:
        for user in ("anna", "ben"):
            here.append(user, item_ids[:5])
            here.recommend(user_id=user)
        assert there.client.delete("/v1/users/anna").status_code == 200
        # Soon after it next answers anybody.
        here.recommend(user_id="ben")
        here.idle()
        assert here.service.watch.lists.users() == ["ben"]


def test_lists_are_bounded_in_number_length_and_age(monkeypatch):
    monkeypatch.setattr(last_lists, "LONGEST", 3)
    now = 1_000.0
    lists = LastLists(2, 60, now=lambda: now)
    lists.remember("a", "v", [1, 2, 3, 4])
    lists.remember("b", "v", [5])
    assert lists.of("a") == LastList("v", 1_000, (1, 2, 3))
    lists.remember("a", "w", [6])
    lists.remember("c", "w", [7])
    assert lists.users() == ["a", "c"] and lists.of("b") is None
    now = 1_059
    lists.remember("c", "w", [8])
    now = 1_061
    # Also where nobody asks for it.
    assert len(lists) == 1 and lists.of("a") is None and lists.of("c") is not None
    lists.drop("c")
    lists.drop("nobody")
    assert len(lists) == 0


def test_no_list_is_remembered_where_that_is_off(run, tmp_path, item_ids, one_thread):
    with Server(run, tmp_path / "events.sqlite", watched_lists=0, watched_events=0) as server:
        server.append("anna", item_ids[:5])
        server.append("anna", listed(server, "anna")[:2])
        version = in_use(server)
        assert (version["lists"], version["followed"]) == (1, 0)
        assert server.service.version.popularity is None
        assert math.isnan(measured(server, "popularity_distance"))


def test_no_list_stands_in_a_file(server, item_ids, tmp_path):
    def written():
        # All but what readers of the file share, which are no data.
        files = [path for path in tmp_path.rglob("events.sqlite*") if path.suffix != ".sqlite-shm"]
        return {path: path.read_bytes() for path in files}

    server.append("anna", item_ids[:5])
    before = written()
    server.recommend(user_id="anna")
    assert written() == before and measured(server, "remembered_lists") == 1


def test_lists_of_the_fallback_are_no_lists_of_the_model(run, tmp_path, item_ids, one_thread):
    rules = Rules(fallback="recent-popularity")
    with Server(run, tmp_path / "events.sqlite", rules=rules) as server:
        shown = listed(server, "nobody")
        server.append("anna", ["new"])
        server.recommend(user_id="anna")
        server.recommend(history=["new"])
        server.append("nobody", shown[:1])
        server.recommend(user_id="nobody")
        version = in_use(server)
        assert (version["lists"], version["fallbacks"], version["followed"]) == (1, 3, 0)
        asked = {"known": 1, "none": 1, "unknown_items": 1}
        for history, count in asked.items():
            assert measured(server, "asked_users_total", history=history) == count


def test_who_is_refused_without_a_fallback_is_counted(server):
    server.client.post("/v1/recommend", json={"user_id": "nobody"})
    assert measured(server, "asked_users_total", history="none") == 1


def test_versions_are_told_with_their_lists_and_what_was_refused(
    tiny_log, tmp_path, item_ids, one_thread
):
    runs = [write_run(tmp_path / name, tiny_log, seed=seed) for seed, name in enumerate("ab")]
    os.utime(runs[0] / "model.safetensors", (1_700_000_000, 1_700_000_000))
    current = tmp_path / "current"
    current.symlink_to(runs[0])
    with Server(current, tmp_path / "events.sqlite") as server:
        server.append("anna", item_ids[:5])
        shown = listed(server, "anna")
        age = time.time() - measured(server, "model_age_seconds")
        assert age == pytest.approx(1_700_000_000, abs=60)
        current.unlink()
        current.symlink_to(runs[1])
        server.reload()
        # What follows is an event of the version that made the list.
        server.append("anna", shown[:1])
        server.recommend(user_id="anna")
        current.unlink()
        with pytest.raises(RunError):
            server.reload()
        answer = server.client.get("/v1/versions").json()
        new, old = answer["versions"]
        assert (new["run"], old["run"]) == ("b", "a") and new["model"] != old["model"]
        assert new["until"] is None and old["until"] == new["since"] >= old["since"]
        assert (old["written"], old["lists"], old["followed"]) == (1_700_000_000, 1, 1)
        assert (new["lists"], new["followed"], within(old)[1]) == (1, 0, 1)
        why = answer["refused"][0]["why"]
        assert why == "current/config.json is missing: current is not a run folder"
        assert measured(server, "model_before_info", version=old["model"]) == 1
        text = server.client.get("/metrics").text
        assert text.count("blossomrec_model_before_info{") == 1
        current.symlink_to(runs[0])
        server.reload()
        # Used again, it goes on counting.
        versions = server.client.get("/v1/versions").json()["versions"]
        assert [one["run"] for one in versions] == ["a", "b"]
        assert (versions[0]["followed"], versions[0]["until"]) == (1, None)


def test_records_are_bounded():
    records = VersionRecords(now=lambda: 5.0)
    for number in range(MOST_VERSIONS + 3):
        records.use(f"v{number}", "run", 1.0)
        records.refuse(f"no {number}")
    versions, refused = records.told()
    assert [one.model for one in versions[:2]] == ["v22", "v21"]
    assert len(versions) == MOST_VERSIONS and len(refused) == MOST_REFUSED
    assert refused[0].why == "no 22"
    # What comes late for one that is forgotten counts nowhere.
    records.add_event("v0", 1)
    records.add_list("v0", fallback=False)
    assert records.told()[0] == versions


def test_a_fault_is_not_told_in_its_words(server, monkeypatch):
    monkeypatch.setattr("blossomrec.serving.engine.service.load_version", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        server.reload()
    refused = server.client.get("/v1/versions").json()["refused"]
    assert [one["why"] for one in refused] == ["a fault of the server, which logged it"]


def test_a_refused_reload_tells_no_folder_of_this_machine(tiny_log, tmp_path, one_thread):
    run = write_run(tmp_path / "some where" / "first", tiny_log)
    current = tmp_path / "current"
    current.symlink_to(run)
    with Server(current, tmp_path / "events.sqlite") as server:
        (run / "vocabulary" / "vocabulary.json").unlink()
        with pytest.raises(RunError, match=str(tmp_path)):
            server.reload()
        (refused,) = server.client.get("/v1/versions").json()["refused"]
    assert "first/vocabulary" in refused["why"] and "some where" not in refused["why"]
    assert str(tmp_path) not in refused["why"]


def test_only_folders_of_paths_are_left_out_of_a_message():
    for text, left in {
        "/srv/runs/7/a.json is damaged: see https://a.b/c/d": "7/a.json is damaged: see "
        "https://a.b/c/d",
        "[Errno 13] Permission denied: '/data/items.csv'": "[Errno 13] Permission denied: "
        "'items.csv'",
        "5 of 3/4 items, and/or 1 / 2": "5 of 3/4 items, and/or 1 / 2",
    }.items():
        assert without_folders(text, Path("/srv/runs/7")) == left


def test_buckets_go_from_popular_to_rare_with_the_same_number_of_events():
    counts = np.random.default_rng(0).zipf(1.3, 5_000).clip(max=400)
    trained = TrainedPopularity.of_counts(counts)
    assert trained.shares.sum() == pytest.approx(1)
    assert trained.shares == pytest.approx(np.full(BUCKETS, 1 / BUCKETS), abs=0.01)
    order = np.argsort(-counts, kind="stable")
    assert (np.diff(trained.bucket[order].astype(int)) >= 0).all()


def test_popularity_of_the_log_of_a_run(tiny_log, tmp_path):
    items = tiny_log.item_vocabulary
    counts = np.bincount(tiny_log.items, minlength=items.size)
    found = TrainedPopularity.of_log(tiny_log.folder, items)
    wanted = TrainedPopularity.of_counts(counts)
    assert found is not None and (found.bucket == wanted.bucket).all()
    assert TrainedPopularity.of_log(tmp_path / "gone", items) is None


def test_the_distance_is_that_of_weighted_shares():
    trained = TrainedPopularity.of_counts(np.full(BUCKETS, 10.0))
    drift, look_back = PopularityDrift(50), 50
    drift.use(trained)
    assert math.isnan(drift.distance()) and drift.events() == 0
    rows = np.random.default_rng(1).integers(0, 4, 300)
    for row in rows:
        drift.count(trained, np.array([row]))
    weights = (1 + 1 / look_back) ** np.arange(len(rows))
    shares = np.bincount(rows, weights, minlength=BUCKETS) / weights.sum()
    assert drift.distance() == pytest.approx(np.abs(shares - trained.shares).sum() / 2)
    assert drift.events() == pytest.approx(look_back, rel=0.01)
    # Rows of another model mean other items.
    before = drift.distance()
    drift.count(dataclasses.replace(trained), np.array([9]))
    drift.count(None, np.array([9]))
    assert drift.distance() == before
    drift.use(None)
    drift.count(trained, np.array([9]))
    assert math.isnan(drift.distance())


def test_weights_of_events_never_overflow():
    trained = TrainedPopularity.of_counts(np.full(BUCKETS, 10.0))
    drift = PopularityDrift(1)
    drift.use(trained)
    for _ in range(10):
        drift.count(trained, np.arange(BUCKETS).repeat(20))
    # Each event weighs twice the one before: the last twenty are in the last bucket.
    assert drift.distance() == pytest.approx(1 - 1 / BUCKETS, abs=1e-5)


def test_drift_is_seen_in_what_is_measured(server, item_ids, tiny_log):
    rare = np.bincount(tiny_log.items, minlength=len(item_ids)).argmin()
    for _ in range(3):
        server.append("anna", [item_ids[rare]] * 100)
    assert measured(server, "popularity_distance") > 0.9
    assert measured(server, "popularity_events") == pytest.approx(300, rel=0.05)
