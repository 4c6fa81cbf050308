"""Models that see kinds, context and users, served: the answers are those offline."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from serving_runs import Server, write_run

from blossomrec import BlossomRec, EventLog
from blossomrec.data.history import History
from blossomrec.serving.stores.bulk import import_events
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.version.histories import UserHistory

NOW = 1_700_000_000
SEEN = {"event_kinds": "on", "request_kind": "on", "context": "on", "user_table": "on"}
TIMED = {"time_gap": "on", "request_time": "on", "clock": "on", "time_share": 0.25}
USERS = [str(n) for n in (3, 12, 20)]


def frame_of(kinds: tuple[str, ...], shops: tuple[str, ...], seed: int = 0) -> pl.DataFrame:
    """20 users, with numbers as ids, with kinds and context, some of which are missing."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, 20)
    total, users = lengths.sum(), np.repeat(np.arange(1, 21), lengths)
    prices = np.round(rng.normal(20, 5, total), 2)
    return pl.DataFrame(
        {
            "user_id": users,
            "item_id": rng.integers(0, 30, total),
            "timestamp": NOW + np.arange(total) * 3_600,
            "event": [(*kinds, None)[n] for n in rng.integers(0, len(kinds) + 1, total)],
            "shop": [(*shops, None)[n] for n in rng.integers(0, len(shops) + 1, total)],
            "price": [
                None if n < 0.2 else p for n, p in zip(rng.random(total), prices, strict=True)
            ],
        }
    )


def log_of(frame: pl.DataFrame, folder) -> EventLog:
    users = pl.DataFrame({"user_id": range(1, 19), "age": [20.0 + n for n in range(18)]})
    columns = {"kind": "event", "context": ("shop", "price"), "users": users}
    return EventLog.prepare(frame, folder, **columns)


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return frame_of(("click", "buy", "gift"), ("web", "app"))


@pytest.fixture(scope="module")
def log(frame, tmp_path_factory) -> EventLog:
    return log_of(frame, tmp_path_factory.mktemp("told") / "log")


@pytest.fixture(scope="module", params=["sasrec", "gru4rec", "bert4rec"])
def told_run(request, log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return write_run(folder, log, backbone=request.param, max_len=40, **SEEN, **TIMED)


def sent(events: pl.DataFrame) -> list[dict]:
    """Events as a client sends them."""
    return [
        {
            "item": row["item_id"],
            "timestamp": row["timestamp"],
            "kind": row["event"],
            "context": {name: row[name] for name in ("shop", "price")},
        }
        for row in events.iter_rows(named=True)
    ]


def store(server: Server, frame: pl.DataFrame, users: list[str]) -> None:
    for user in users:
        events = sent(frame.filter(pl.col("user_id") == int(user)))
        # In parts, so that a kept state is extended.
        for some in (events[:2], events[2:3], events[3:]):
            if some:
                server.append(user, some)
                server.recommend(user_id=user)


def same(found, wanted: pl.DataFrame) -> None:
    assert [one["item"] for one in found] == wanted["item_id"].to_list()
    scores = [one["score"] for one in found]
    np.testing.assert_allclose(scores, wanted["score"].to_numpy(), rtol=1e-5, atol=1e-5)


def test_answers_are_those_offline(told_run, log, frame, tmp_path):
    offline = BlossomRec.from_pretrained(told_run, log, device="cpu")
    with Server(told_run, tmp_path / "events.db", max_future=1e12) as server:
        store(server, frame, USERS)
        scores = set()
        for kind in (None, "click", "buy"):
            for later in (60, 86_400 * 30):
                at = NOW + 10_000_000 + later
                expected = offline.recommend(USERS, k=5, at=at, kind=kind)
                for user in USERS:
                    found = server.recommend(user_id=user, k=5, at=at, kind=kind)
                    same(found, expected.filter(pl.col("user_id") == int(user)))
                scores.add(found[0]["score"])
        assert len(scores) == 6
        answer = server.client.post("/v1/recommend", json={"user_id": USERS[0], "kind": "cart"})
        assert (
            "kind is 'cart': known are " in server.refused(answer, 422, "unknown_kind")["message"]
        )


def test_a_history_in_a_request_brings_what_is_known_of_it(told_run, log, frame, tmp_path):
    events = frame.filter(pl.col("user_id") == 12)
    given = {"item_id": events["item_id"], "timestamp": events["timestamp"]}
    given |= {"kind": events["event"], "shop": events["shop"], "price": events["price"]}
    offline = BlossomRec.from_pretrained(told_run, log, device="cpu")
    with Server(told_run, tmp_path / "events.db") as server:
        listed = sent(events)
        body = {"history": [one["item"] for one in listed], "k": 5, "at": NOW + 10**7}
        plain = server.recommend(**body)
        body |= {"times": [one["timestamp"] for one in listed], "kind": "buy"}
        body |= {"kinds": [one["kind"] for one in listed]}
        body |= {"contexts": [one["context"] for one in listed]}
        same(
            server.recommend(**body),
            offline.recommend_history(given, 5, at=NOW + 10**7, kind="buy"),
        )
        # Somebody who is in no table is as unknown as whoever is not told.
        told = offline.recommend_history(given, 5, at=NOW + 10**7)
        server.append("nobody", listed)
        same(server.recommend(user_id="nobody", k=5, at=NOW + 10**7), told)
        alone = {"item_id": events["item_id"].to_list()}
        same(plain, offline.recommend_history(alone, 5, at=NOW + 10**7))


def test_an_explanation_sums_up_to_the_score(told_run, frame, tmp_path):
    with Server(told_run, tmp_path / "events.db", max_future=1e12) as server:
        store(server, frame, ["12"])
        body = {"user_id": "12", "at": NOW + 10**7, "kind": "buy"}
        best = server.recommend(**body)[0]
        if told_run.name != "sasrec":
            answer = server.client.post("/v1/explain", json=body | {"item_id": best["item"]})
            server.refused(answer, 422, "not_explainable")
            return
        explained = server.post("/v1/explain", body | {"item_id": best["item"]})
        assert explained["score"] == pytest.approx(best["score"], rel=1e-4)
        total = sum(explained["contributions"]) + explained["rest"]
        assert total == pytest.approx(explained["score"], rel=1e-3)
        other = server.post("/v1/explain", body | {"item_id": best["item"], "kind": "click"})
        assert other["score"] != explained["score"]
        assert server.post("/v1/similar", {"items": [best["item"]]})


def test_a_new_model_has_numbers_of_its_own(told_run, log, frame, tmp_path):
    """Kinds, categories and users meet by name; what one of the two does not know is unknown."""
    run = tmp_path / "current"
    run.symlink_to(told_run)
    later = log_of(frame_of(("gift", "view", "click"), ("fax", "app"), 1), tmp_path / "later")
    assert later.fields.kinds != log.fields.kinds
    with Server(run, tmp_path / "events.db", max_future=1e12) as server:
        store(server, frame, USERS)
        options = {"backbone": told_run.name, "max_len": 40, **SEEN, **TIMED}
        newer = write_run(tmp_path / "newer", later, seed=1, **options)
        run.unlink()
        run.symlink_to(newer)
        server.reload()
        assert server.client.get("/readyz").json()["kinds"] == list(later.fields.kinds)
        offline = BlossomRec.from_pretrained(run, log, device="cpu")
        wanted = offline.recommend(USERS, k=5, at=NOW + 10**7, kind="click")
        for user in USERS:
            found = server.recommend(user_id=user, k=5, at=NOW + 10**7, kind="click")
            same(found, wanted.filter(pl.col("user_id") == int(user)))
        error = server.client.post("/v1/recommend", json={"user_id": "3", "kind": "buy"})
        server.refused(error, 422, "unknown_kind")


def test_histories_that_were_imported_are_seen_the_same(told_run, log, frame, tmp_path):
    offline = BlossomRec.from_pretrained(told_run, log, device="cpu")
    wanted = offline.recommend(USERS, k=5, at=NOW + 10**7, kind="buy")
    with Server(told_run, tmp_path / "events.db") as server:
        events = SQLiteStore(tmp_path / "events.db")
        import_events(log.folder, events)
        events.close()
        for user in USERS:
            found = server.recommend(user_id=user, k=5, at=NOW + 10**7, kind="buy")
            same(found, wanted.filter(pl.col("user_id") == int(user)))


def test_requests_of_one_user_for_several_kinds_arrive_together(told_run, frame, tmp_path):
    """They share the history, not what is asked."""
    from concurrent.futures import ThreadPoolExecutor

    with Server(told_run, tmp_path / "events.db", max_future=1e12, wait_ms=50.0) as server:
        store(server, frame, USERS)
        asked = [
            {"user_id": user, "at": NOW + 10**7, "kind": kind}
            for user in USERS
            for kind in ("click", "buy", None)
        ]
        alone = [server.recommend(**one) for one in asked]
        with ThreadPoolExecutor(9) as pool:
            together = list(pool.map(lambda one: server.recommend(**one), asked))
        for one, other in zip(alone, together, strict=True):
            assert [a["item"] for a in one] == [b["item"] for b in other]
            np.testing.assert_allclose(
                [a["score"] for a in one], [b["score"] for b in other], atol=1e-5
            )


def test_histories_that_are_encoded_for_a_request_are_few_at_a_time(log, tmp_path):
    run = write_run(tmp_path / "run", log, backbone="bert4rec", max_len=40, **SEEN)
    with Server(run, tmp_path / "events.db") as server:
        encoder = server.service.version.encoder
        histories = [UserHistory(inputs=("items",)) for _ in range(4)]
        for history, length in zip(histories, (30, 10, 60, 5), strict=True):
            history.add(History(np.arange(length) % 30), length)
            assert encoder.missing(history) == 0
        # Of the third one, 40 events are seen.
        found = [encoder.together(histories, limit) for limit in (0, 30, 39, 40, 79, 80, 85)]
        assert found == [1, 1, 1, 2, 2, 3, 4]
