"""What the server answers is what ``recommend`` answers offline, whatever happened in between."""

import json

import numpy as np
import pytest
from serving_runs import Server, write_run

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, RunError
from blossomrec.recommender import BlossomRec
from blossomrec.serving.version.encoder import FEW_EVENTS, MANY_EVENTS
from blossomrec.serving.version.histories import window_start

TOLERANCE = 1e-4


def offline(run, log):
    return BlossomRec.from_pretrained(run, log, device="cpu")


def assert_equal(answer, frame):
    """The same items in the same order, but for those whose scores are equal within rounding."""
    scores = [one["score"] for one in answer]
    assert scores == pytest.approx(frame["score"].to_list(), abs=TOLERANCE)
    assert [one["rank"] for one in answer] == frame["rank"].to_list()
    by_item = dict(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))
    last = scores[-1] if scores else 0.0
    for one in answer:
        if one["item"] not in by_item:
            assert one["score"] == pytest.approx(last, abs=2 * TOLERANCE)
        else:
            assert one["score"] == pytest.approx(by_item[one["item"]], abs=TOLERANCE)


MODELS = {
    "blossom": {},
    "redis": {},
    "deep": {"layers": 3, "norm": "pre", "sinks": 2},
    "full": {"attention": "full"},
    "bert4rec": {"backbone": "bert4rec"},
    "gru4rec": {"backbone": "gru4rec"},
    "window": {"attention": "window"},
    "linrec": {"attention": "linrec"},
    "mamba4rec": {"backbone": "mamba4rec"},
    "hstu": {"backbone": "hstu"},
    "gated": {"residual": "gated", "feed_forward": "swiglu", "norm": "pre"},
    "repeats": {"repeats": "on"},
    "repeats-gru4rec": {"backbone": "gru4rec", "repeats": "on"},
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_offline_through_appends_evictions_and_restarts(
    name, tiny_log, item_ids, tmp_path, one_thread, request
):
    place = tmp_path / "events.sqlite"
    if name == "redis":
        place = request.getfixturevalue("redis_server")
        place.ask("FLUSHDB")
    run = write_run(tmp_path / "run", tiny_log, **MODELS[name])
    recommender, rng = offline(run, tiny_log), np.random.default_rng(3)
    histories = {f"user {number}": [] for number in range(6)}
    # Room for about two users: others leave and come back.
    options = {"cache_mib": 0} if name == "deep" else {}
    for _ in range(4):
        with Server(run, place, **options) as server:
            server.service.version.cache.budget = min(
                server.service.version.cache.budget,
                7_000 if "rec" in name or name == "window" else 16_000,
            )
            for _ in range(25):
                user = f"user {rng.integers(len(histories))}"
                if rng.random() < 0.6 or not histories[user]:
                    # Up to the length the model sees, and beyond it.
                    items = rng.choice(item_ids, rng.integers(1, 8)).tolist()
                    histories[user] += items
                    assert server.append(user, items)["length"] == len(histories[user])
                    continue
                ask = {"k": int(rng.integers(1, 90)), "filter_viewed": bool(rng.integers(2))}
                answer = server.recommend(user_id=user, **ask)
                frame = recommender.recommend_history(histories[user], **ask)
                assert_equal(answer, frame)
            metrics = server.client.get("/metrics").text
    assert max(map(len, histories.values())) > 40
    assert "blossomrec_cache_evictions_total 0.0" not in metrics


def test_long_histories_are_encoded_in_parts(run, tiny_log, item_ids, tmp_path, one_thread):
    rng, max_len = np.random.default_rng(0), 4 * MANY_EVENTS
    recommender, ask = offline(run, tiny_log), {"k": 9, "filter_viewed": False}
    lengths = (max_len, MANY_EVENTS + FEW_EVENTS + 1, max_len + 700, 5_000)
    with Server(run, tmp_path / "events.sqlite", max_len=max_len, max_events=5_000) as server:
        for number, length in enumerate(lengths):
            history = rng.choice(item_ids, length).tolist()
            server.append(number, history)
            for more in ([], [item_ids[5]], rng.choice(item_ids, 40).tolist()):
                if more:
                    server.append(number, more)
                history += more
                answer = server.recommend(user_id=number, **ask)
                frame = recommender.recommend_history(history, **ask, max_len=max_len)
                assert_equal(answer, frame)


@pytest.mark.parametrize("max_len, step", [(20, 1), (20, 7), (20, 20), (13, 4)])
def test_the_window_moves_by_steps(run, tiny_log, item_ids, tmp_path, one_thread, max_len, step):
    recommender, rng = offline(run, tiny_log), np.random.default_rng(1)
    history = []
    with Server(run, tmp_path / "events.sqlite", max_len=max_len, step=step) as server:
        while len(history) < 60:
            items = rng.choice(item_ids, rng.integers(1, 5)).tolist()
            history += items
            server.append("u", items)
            seen = history[window_start(len(history), max_len, step) :]
            assert max_len - step < len(seen) <= max_len or seen == history
            answer = server.recommend(user_id="u", k=80, filter_viewed=False)
            frame = recommender.recommend_history(seen, 80, filter_viewed=False, max_len=max_len)
            assert_equal(answer, frame)


def test_a_history_in_the_request_is_a_history_like_a_stored_one(server, tiny_log, item_ids):
    recommender = offline(server.run, tiny_log)
    for length in (1, 19, 20, 21, 70):
        history = [item_ids[(7 * place) % 80] for place in range(length)]
        server.append(f"u{length}", history)
        answer = server.recommend(history=history, k=8)
        assert answer == server.recommend(user_id=f"u{length}", k=8)
        assert_equal(answer, recommender.recommend_history(history, 8))


def test_items_to_leave_out_and_to_choose_from(server, tiny_log, item_ids):
    recommender = offline(server.run, tiny_log)
    history, chosen = item_ids[:5], item_ids[3:30]
    answer = server.recommend(history=history, items=chosen, k=50)
    assert_equal(answer, recommender.recommend_history(history, 50, items=chosen))
    assert len(answer) == 25
    best = [one["item"] for one in answer]
    left = server.recommend(history=history, items=chosen, exclude=[*best[:3], "none"], k=2)
    assert [one["item"] for one in left] == best[3:5]
    assert [one["rank"] for one in left] == [1, 2]
    everything = server.recommend(history=history, filter_viewed=False, k=1_000)
    assert {one["item"] for one in everything} == set(item_ids)


def served_as_evaluated(run, filter_viewed):
    """The run, with word of what its evaluation does with items of the history; None for none."""
    path = run / "config.json"
    values = json.loads(path.read_text())
    values.pop("filter_viewed", None)
    given = {} if filter_viewed is None else {"filter_viewed": filter_viewed}
    path.write_text(json.dumps(values | given))
    return run


@pytest.mark.parametrize("evaluated, left_out", [(True, True), (False, False), (None, True)])
def test_viewed_items_are_left_out_as_in_the_evaluation(
    tiny_log, item_ids, tmp_path, one_thread, evaluated, left_out
):
    run = served_as_evaluated(write_run(tmp_path / "run", tiny_log), evaluated)
    history = item_ids[:30]
    with Server(run, tmp_path / "events.sqlite") as server:
        server.append("anna", history)
        for asked in ({"user_id": "anna"}, {"history": history}):
            found = {
                said: server.recommend(**asked, k=80, filter_viewed=said)
                for said in (None, True, False)
            }
            assert server.recommend(**asked, k=80) == found[None] == found[left_out]
            assert len(found[True]) == 50 and len(found[False]) == 80


def test_a_new_model_brings_what_its_evaluation_does(tiny_log, item_ids, tmp_path, one_thread):
    run = served_as_evaluated(write_run(tmp_path / "run", tiny_log), False)
    with Server(run, tmp_path / "events.sqlite") as server:
        assert len(server.recommend(history=item_ids[:30], k=80)) == 80
        served_as_evaluated(run, True)
        server.reload()
        assert len(server.recommend(history=item_ids[:30], k=80)) == 50
        served_as_evaluated(run, "yes")
        with pytest.raises(RunError, match="filter_viewed"):
            server.reload()
        assert len(server.recommend(history=item_ids[:30], k=80)) == 50


def test_similar_items_are_those_of_the_recommender(server, tiny_log, item_ids):
    wanted = offline(server.run, tiny_log).similar_items(item_ids[:3], 6)
    answer = server.post("/v1/similar", {"items": [str(item) for item in item_ids[:3]], "k": 6})
    for number, one in enumerate(answer["items"]):
        part = wanted[6 * number : 6 * number + 6].rename(
            {"item_id": "of", "similar_id": "item_id"}
        )
        assert_equal(one["similar"], part)
        assert one["item"] == str(item_ids[number])
    whole = server.post("/v1/similar", {"items": item_ids[:1], "k": 1_000})["items"][0]
    assert {one["item"] for one in whole["similar"]} == set(item_ids[1:])


def test_items_switched_off_are_not_recommended(run, item_ids, tmp_path, one_thread):
    path = tmp_path / "events.sqlite"
    with Server(run, path) as server:
        before = [one["item"] for one in server.recommend(history=item_ids[:2], k=80)]
        close = server.post("/v1/similar", {"items": item_ids[:1]})["items"][0]["similar"]
        off = [before[0], before[2], close[0]["item"]]
        answer = server.post("/v1/items", {"off": [str(off[0]), *off[1:]]})
        assert sorted(answer["off"]) == sorted(set(off))
        refused = server.client.post("/v1/items", json={"off": off[1:], "on": off[:2]})
        assert refused.status_code == 422
        assert refused.json()["error"]["field"] == "on[1]"
    # They stay off when the server comes back.
    with Server(run, path) as server:
        after = [one["item"] for one in server.recommend(history=item_ids[:2], k=80)]
        assert after == [item for item in before if item not in off]
        assert server.recommend(history=item_ids[:2], items=off[:2]) == []
        again = server.post("/v1/similar", {"items": item_ids[:1]})["items"][0]["similar"]
        assert again[0]["item"] == close[1]["item"]
        none = {"off": [], "unknown_items": []}
        assert server.post("/v1/items", {"on": off}) == none
        assert server.client.get("/v1/items").json() == none
        assert [one["item"] for one in server.recommend(history=item_ids[:2], k=80)] == before


def test_users_of_the_log_are_answered_as_offline(run, tiny_log, tmp_path, cli, one_thread):
    path = tmp_path / "events.sqlite"
    shown = cli("import-events", tiny_log.folder, "--store", path)
    assert "60 users with 1,830 events are new" in shown
    recommender = offline(run, EventLog.open(tiny_log.folder))
    users = tiny_log.user_vocabulary.ids(np.arange(60)).to_list()
    frames = []
    for max_len in (None, 7, 50):
        frame = recommender.recommend(users, 5, max_len=max_len)
        with Server(run, path, max_len=max_len or 0) as server:
            for place, user in enumerate(users):
                assert_equal(server.recommend(user_id=user, k=5), frame[5 * place : 5 * place + 5])
        frames.append(frame)
    assert not frames[0].equals(frames[1]) and not frames[0].equals(frames[2])
    with pytest.raises(ConfigError, match="max_len is 0"):
        recommender.recommend(users, 5, max_len=0)
    last = str(users[-1])
    for flags, wanted in (((), frames[0]), (("--max-len", 7), frames[1])):
        shown = json.loads(cli("recommend", run, "--user", last, "--k", 5, "--json", *flags))
        assert [one["item_id"] for one in shown] == wanted["item_id"][-5:].to_list()
