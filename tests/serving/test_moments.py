"""A model that sees times, served: what is answered for a moment is what is recommended offline."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from serving_runs import Server, write_run

from blossomrec import BlossomRec, EventLog

NOW = 1_700_000_000
TIMED = {"time_gap": "on", "request_time": "on", "clock": "on", "time_share": 0.25}


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    """20 users with times in milliseconds, minutes to months apart."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, 20)
    gaps = np.exp(rng.uniform(4, 15, lengths.sum())).astype(np.int64)
    users = np.repeat(np.arange(20), lengths)
    frame = pl.DataFrame(
        {
            "user_id": [f"user {user}" for user in users],
            "item_id": rng.integers(0, 30, lengths.sum()),
            "timestamp": (NOW + np.concatenate([np.cumsum(gaps[users == u]) for u in range(20)]))
            * 1_000,
        }
    )
    return EventLog.prepare(frame, tmp_path_factory.mktemp("timed") / "log")


@pytest.fixture(scope="module", params=["sasrec", "gru4rec", "mamba4rec", "hstu", "repeats"])
def timed_run(request, log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    form = {"backbone": request.param} if request.param != "repeats" else {"repeats": "on"}
    return write_run(folder, log, max_len=40, **form, **TIMED)


def stored(server: Server, log: EventLog, users: list[str]) -> None:
    for user in users:
        (row,) = log.user_vocabulary.rows([user])
        part = slice(log.offsets[row], log.offsets[row + 1])
        items = log.item_vocabulary.ids(log.items[part]).to_list()
        times = log.timestamps[part].tolist()
        events = [{"item": i, "timestamp": t} for i, t in zip(items, times, strict=True)]
        # In two parts, so that a kept state is extended.
        for some in (events[:2], events[2:]):
            if some:
                server.post(f"/v1/users/{user}/events", {"events": some})
            server.post("/v1/recommend", {"user_id": user})


def test_answers_for_a_moment_are_those_offline(timed_run, log, tmp_path):
    users = [f"user {n}" for n in range(6)]
    offline = BlossomRec.from_pretrained(timed_run, log, device="cpu")
    with Server(timed_run, tmp_path / "events.db", max_future=1e12) as server:
        stored(server, log, users)
        for later in (60, 86_400 * 30):
            at = NOW + 400_000_000 + later
            expected = offline.recommend(users, k=5, at=at)
            for user in users:
                wanted = expected.filter(pl.col("user_id") == user)
                body = {"user_id": user, "k": 5, "at": at * 1_000}
                found = server.post("/v1/recommend", body)["items"]
                assert [one["item"] for one in found] == wanted["item_id"].to_list()
                scores = [one["score"] for one in found]
                np.testing.assert_allclose(scores, wanted["score"].to_numpy(), rtol=2e-4, atol=1e-4)


def test_without_a_moment_it_is_that_of_the_last_event_offline(timed_run, log):
    offline = BlossomRec.from_pretrained(timed_run, log, device="cpu")
    last = int(log.timestamps.max()) // 1_000
    assert log.last_second == last
    found = offline.recommend(k=5)
    assert found.equals(offline.recommend(k=5, at=last))
    assert found.equals(offline.recommend(k=5, at=datetime.fromtimestamp(last, UTC)))
    assert not found.equals(offline.recommend(k=5, at=last + 10**8))


def test_without_a_moment_it_is_now(timed_run, log, tmp_path):
    with Server(timed_run, tmp_path / "events.db", max_future=1e12) as server:
        stored(server, log, ["user 0"])
        first = server.post("/v1/recommend", {"user_id": "user 0"})["items"]
        asked = {"user_id": "user 0", "at": int(time.time())}
        assert server.post("/v1/recommend", asked)["items"] == first
        other = server.post("/v1/recommend", asked | {"at": NOW + 10**9})["items"]
        assert [one["score"] for one in other] != [one["score"] for one in first]


def test_a_moment_that_is_none_is_refused(timed_run, log, tmp_path):
    with Server(timed_run, tmp_path / "events.db", max_future=1e12) as server:
        stored(server, log, ["user 0"])
        answer = server.client.post("/v1/recommend", json={"user_id": "user 0", "at": 17})
        assert answer.status_code == 422
        assert "at is 17: a datetime or a time since 1970 is needed" in answer.text


def test_an_explanation_of_a_moment_sums_up_to_its_score(timed_run, log, tmp_path):
    if timed_run.name not in ("sasrec", "repeats"):
        pytest.skip("only sasrec is explained")
    with Server(timed_run, tmp_path / "events.db", max_future=1e12) as server:
        stored(server, log, ["user 1"])
        body = {"user_id": "user 1", "at": NOW + 5 * 10**8}
        best = server.post("/v1/recommend", body)["items"][0]
        explained = server.post("/v1/explain", body | {"item_id": best["item"]})
        assert explained["score"] == pytest.approx(best["score"], rel=1e-3)
        total = sum(explained["contributions"]) + explained["rest"]
        own = explained["own"]
        if timed_run.name == "repeats":
            # What an unlikely item would not have without its history.
            assert 0 < own["share"] < 1 and own["contribution"] > 0
            assert own["words"].startswith("in the history ")
            total += own["contribution"]
        else:
            assert own is None
        assert total == pytest.approx(explained["score"], rel=1e-3)


def test_a_history_in_a_request_has_no_times(timed_run, log, tmp_path):
    with Server(timed_run, tmp_path / "events.db") as server:
        found = server.post("/v1/recommend", {"history": [1, 2, 3], "at": NOW})["items"]
        offline = BlossomRec.from_pretrained(timed_run, log, device="cpu")
        wanted = offline.recommend_history([1, 2, 3], at=NOW)
        assert [one["item"] for one in found] == wanted["item_id"].to_list()
