"""Whether the server can do its work, what its store holds, and what does not wait for writers."""

import json
import logging
import os
import sqlite3
import threading

import pytest
from places import Redis, needs_redis
from serving_runs import WAIT, Process, Server

from blossomrec.serving import Client, ServerError
from blossomrec.serving.engine import service
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event, Tail


@pytest.fixture(autouse=True)
def look_always(monkeypatch):
    """The state of the store is not kept for a while."""
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.0)


def test_the_store_is_looked_at_once_in_a_while(server, monkeypatch):
    looks, reader = [], server.service._reader._store
    monkeypatch.setattr(service, "LOOK_SECONDS", 3_600.0)
    monkeypatch.setattr(reader, "check", lambda: looks.append(1))
    for _ in range(3):
        assert server.client.get("/readyz").status_code == 200
    assert looks == [1]


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_a_store_that_is_gone_takes_no_event(server, item_ids, caplog, way):
    server.append("anna", item_ids[:3])
    assert server.client.get("/readyz").json()["ready"]
    os.unlink(server.store_path)
    if way == "replaced":
        SQLiteStore(server.store_path).close()
    body = {"events": [{"item": item_ids[0]}]}
    asked = [
        lambda: server.client.post("/v1/users/anna/events", json=body),
        lambda: server.client.delete("/v1/users/anna"),
        lambda: server.client.get("/readyz"),
    ]
    for ask in asked:
        caplog.clear()
        answer = ask()
        server.refused(answer, 503, "store_failed")
        # It does not pass by itself.
        assert "retry-after" not in answer.headers
        assert any("has been removed or replaced" in text for text in caplog.messages)


def test_a_broken_store_is_not_ready(server, item_ids):
    server.append("anna", item_ids[:3])
    size = server.store_path.stat().st_size
    with open(server.store_path, "r+b") as file:
        file.write(os.urandom(size))
    answer = server.client.get("/readyz")
    server.refused(answer, 503, "store_failed")
    assert "retry-after" not in answer.headers


def test_an_error_that_does_not_pass_is_not_said_to_pass(server, item_ids, monkeypatch):
    store, errors = server.service._committer._store, []

    def failing(*_):
        raise errors[-1]

    monkeypatch.setattr(store, "append", failing)
    for code, passes in (
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_CORRUPT, False),
        (sqlite3.SQLITE_IOERR, False),
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True),
    ):
        errors.append(sqlite3.OperationalError("it failed"))
        errors[-1].sqlite_errorcode = code
        body = {"events": [{"item": item_ids[0]}]}
        answer = server.client.post("/v1/users/anna/events", json=body)
        server.refused(answer, 503, "store_failed")
        assert ("retry-after" in answer.headers) == passes


@needs_redis
def test_a_redis_that_is_away_is_not_ready(run, item_ids, tmp_path, one_thread):
    place = Redis(tmp_path)
    with Server(run, place) as server:
        assert server.client.get("/readyz").status_code == 200
        place.kill()
        answer = server.client.get("/readyz")
        server.refused(answer, 503, "store_failed")
        assert answer.headers["retry-after"] == "1"
        place.start()
        assert server.client.get("/readyz").status_code == 200
    place.kill()


def test_reading_does_not_wait_for_a_writer(run, place, item_ids, one_thread):
    """What was acknowledged is seen, what somebody is about to write is not."""
    with Server(run, place, timeout=5.0) as server:
        server.append("anna", item_ids[:3])
        server.client.post("/v1/items", json={"off": item_ids[:1]})
        writing, over = threading.Event(), threading.Event()

        def write(store):
            store.append("anna", [Event(item_ids[5])], 2**31)
            writing.set()
            assert over.wait(WAIT)

        future = server.service._committer.submit(write)
        assert writing.wait(WAIT)
        try:
            assert server.client.get("/v1/users/anna").json()["length"] == 3
            listed = server.client.get("/v1/users").json()["users"]
            assert listed == [{"user_id": "anna", "length": 3, "timestamp": listed[0]["timestamp"]}]
            assert server.client.get("/v1/items").json()["off"] == item_ids[:1]
            assert server.client.get("/readyz").status_code == 200
        finally:
            over.set()
        future.result(WAIT)
        assert server.client.get("/v1/users/anna").json()["length"] == 4


def test_what_the_store_holds_is_told_at_the_start(run, place, caplog, one_thread):
    store = place.open()
    with store.transaction():
        store.append("anna", [Event(1, 1_700_000_000_000)] * 1_200, 0)
        store.append("ben", [Event(1, 1_700_000_000_000)], 0)
    store.close()
    caplog.set_level(logging.INFO)
    with Server(run, place):
        pass
    told = "the store holds 2 users with 1,201 events, their times in milliseconds"
    assert told in caplog.messages


def test_a_length_that_lies_keeps_nobody_busy(server, item_ids, monkeypatch):
    """The user is refused at once, the others are served."""
    for user in ("anna", "ben"):
        server.append(user, item_ids[:3])
    reader = server.service._engine._reader
    original = reader.tail
    reads = []

    def lying(user, number, start, limit):
        tail = original(user, number, start, limit)
        reads.append(user)
        return tail._replace(length=10**6) if user == "anna" else tail

    monkeypatch.setattr(reader, "tail", lying)
    answer = server.client.post("/v1/recommend", json={"user_id": "anna"})
    error = server.refused(answer, 503, "store_damaged")
    assert "history of 'anna' is shorter than its length says" in error["message"]
    assert "retry-after" not in answer.headers
    assert len(reads) <= 3
    assert server.recommend(user_id="ben", k=3)


def test_a_history_that_cannot_be_read_on_is_refused():
    from blossomrec.serving.engine.reading import Histories
    from blossomrec.serving.metrics import Metrics
    from blossomrec.serving.version.histories import UserHistory

    class Lying:
        def tail(self, user, number, start, limit):
            return Tail(1, 0, 5, [], [])

    with pytest.raises(Refusal, match="shorter than its length says"):
        Histories(Lying(), Metrics()).read_on(None, "anna", UserHistory(1))


def test_a_time_in_the_future_locks_no_user(run, place, item_ids, one_thread):
    with Server(run, place, max_future=3_600.0) as server:
        ids = item_ids
        now = server.append("anna", ids[:1]) and last(server, "anna")
        for ahead, factor in ((7_200, 1), (0, 1_000), (-86_400, 10**6), (10**9, 1)):
            time = (now + ahead) * factor
            events = [{"item": ids[1]}, {"item": ids[2], "timestamp": time}]
            answer = server.client.post("/v1/users/anna/events", json={"events": events})
            error = server.refused(answer, 422, "in_the_future")
            assert (error["field"], error["value"]) == ("events[1].timestamp", time)
        assert server.append("anna", ids[1:2])["length"] == 2
        server.append("anna", [{"item": ids[1], "timestamp": now + 1_800}])


def test_an_event_without_a_time_has_one_in_the_unit_of_the_store(run, place, item_ids, one_thread):
    store = place.open()
    with store.transaction():
        store.append("import", [Event(item_ids[0], 1_600_000_000_000_000)], 0)
    store.close()
    with Server(run, place) as server:
        for user in ("import", "anna"):
            server.append(user, item_ids[:1])
            assert last(server, user) > 1_700_000_000_000_000
        old = {"events": [{"item": item_ids[0], "timestamp": 1_800_000_000}]}
        answer = server.client.post("/v1/users/import/events", json=old)
        error = server.refused(answer, 409, "out_of_order")
        assert "times are in microseconds here, and this one looks like seconds" in error["message"]


def last(server, user):
    return server.client.get(f"/v1/users/{user}").json()["events"][-1]["timestamp"]


ODD = [
    "می\u200cخ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "Anna\u00a0S",
    "a\u00adb",
    "\ufeffx",
    " a ",
    "\u202eabc",
    "a/b?c#d%2F\\",
    "é",
    "e\u0301",
    "x" * 256,
    "\U0001f600" * 256,
]
BAD = ["a\tb", "a\nb", "a\n", "\x00", "\x7f", "\x85", "\ufffd", "x" * 257]


def test_any_id_goes_in_and_out(run, place, item_ids, tmp_path):
    """By its exact code points, with nothing normalised."""
    with Process(run, place.where) as server, Client(server.url) as client:
        for number, user in enumerate(ODD):
            events = [{"item": item, "timestamp": number} for item in item_ids[: number + 1]]
            assert client.append(user, events)["user_id"] == user
            keyed = [{"item": item_ids[0], "key": user, "timestamp": number}]
            assert client.append(user, keyed)["stored"] == 1
            assert client.append(user, keyed)["repeated"] == 1
        for number, user in enumerate(ODD):
            assert client.user(user)["length"] == number + 2
            assert client.recommend(user, 1)
        assert [one["user_id"] for one in client.users()] == ODD[::-1]
        for user in BAD:
            with pytest.raises(ServerError, match="user_id") as refused:
                client.append(user, item_ids[:1])
            assert refused.value.status == 422
            with pytest.raises(ServerError) as refused:
                client.recommend(user)
            assert refused.value.status == 422
        for number, user in enumerate(ODD):
            assert client.delete(user) == number + 2
        assert list(client.users()) == []


def test_who_was_stored_under_another_rule_can_be_read_and_deleted(run, place, item_ids, tmp_path):
    store = place.open()
    for user in BAD:
        with store.transaction():
            store.append(user, [Event(item_ids[0], 1)], 0)
    store.close()
    with Process(run, place.where) as server, Client(server.url) as client:
        assert {one["user_id"] for one in client.users()} == set(BAD)
        for user in BAD:
            assert client.user(user)["length"] == 1
            assert client.delete(user) == 1
        assert list(client.users()) == []
        # Bytes that are no UTF-8 are not the user whose id has the character that stands for them.
        client._connection.request("DELETE", "/v1/users/%FF")
        answer = client._connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["field"]) == (422, "user_id")
