"""Many requests at a time: computed together, bounded, in fair turns, each with its own weights."""

import concurrent.futures
import contextlib
import sqlite3
import threading
import time

import pytest
from serving_runs import WAIT, Server, ask, count_calls

from blossomrec.serving.engine.work import Mailbox
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event
from blossomrec.serving.version import encoder


@contextlib.contextmanager
def held(submit):
    """The thread that ``submit`` hands work to is busy inside."""
    begun, over = threading.Event(), threading.Event()

    def busy(*_):
        begun.set()
        assert over.wait(WAIT)

    future = submit(busy)
    assert begun.wait(WAIT)
    try:
        yield
    finally:
        over.set()
        future.result(WAIT)


def names(best):
    return best[0].tolist()


def test_requests_that_wait_are_computed_together(server, item_ids, monkeypatch):
    for user in range(6):
        server.append(user, item_ids[user : user + 4])
    alone = [names(ask(server, str(user)).result(WAIT)) for user in range(6)]
    for user in range(6):
        server.append(user, [item_ids[50]])
    calls = count_calls(monkeypatch, server.service.version.model)
    with held(server.service._engine.call):
        futures = [ask(server, str(user)) for user in (0, 1, 2, 3, 4, 5, 3)]
    together = [names(future.result(WAIT)) for future in futures]
    # One extension, by one event of each user; who asked twice is extended once.
    assert calls == [[1] * 6]
    assert together[3] == together[6] != alone[3]
    again = [names(ask(server, str(user)).result(WAIT)) for user in range(6)]
    assert again == together[:6] and len(calls) == 1


def test_one_more_event_is_one_step(server, item_ids, monkeypatch):
    server.append("anna", item_ids[:10])
    server.recommend(user_id="anna")
    calls = count_calls(monkeypatch, server.service.version.model)
    for number in range(3):
        server.append("anna", [item_ids[20 + number]])
        server.recommend(user_id="anna")
        server.recommend(user_id="anna", k=3)
    assert calls == [[1], [1], [1]]


def test_a_long_history_does_not_hold_up_the_others(run, item_ids, tmp_path, one_thread):
    length = 20 * encoder.MANY_EVENTS
    with Server(run, tmp_path / "e.sqlite", max_len=length, max_events=length) as server:
        server.append("long", [item_ids[place % 60] for place in range(length)])
        server.append("warm", item_ids[:3])
        ask(server, "warm").result(WAIT)
        long = ask(server, "long")
        rounds = 0
        while not long.done():
            server.service._engine.call(lambda: None).result(WAIT)
            if not long.done():
                ask(server, "warm").result(WAIT)
                rounds += 1
        assert rounds >= 5
        assert len(long.result()[0]) == 5


def test_events_that_keep_coming_do_not_keep_an_answer_away(
    run, item_ids, tmp_path, one_thread, monkeypatch
):
    """Every one of these events moves the window, so that the history is encoded anew."""
    length = 6 * encoder.MANY_EVENTS
    with Server(run, tmp_path / "e.sqlite", max_len=length, max_events=length) as server:
        server.append("long", [item_ids[place % 60] for place in range(length)])
        store, own = SQLiteStore(server.store_path), server.service.version.encoder
        futures, original = [], own.advance

        def advance(histories):
            # Between any two rounds somebody appends and asks.
            if not futures[0].done() and len(futures) < 60:
                with store.transaction():
                    store.append("long", [Event(item_ids[0])], 2**40)
                futures.append(ask(server, "long", 80))
            return original(histories)

        with held(server.service._engine.call):
            monkeypatch.setattr(own, "advance", advance)
            futures.append(ask(server, "long", 80))
        futures[0].result(WAIT)
        assert 5 <= len(futures) < 10
        results = [future.result(WAIT) for future in futures]
        assert names(results[-1]) == names(ask(server, "long", 80).result(WAIT))
        store.close()


@pytest.mark.parametrize("what", ["model", "store"])
def test_a_full_queue_turns_requests_away(run, item_ids, tmp_path, one_thread, what):
    with Server(run, tmp_path / "events.sqlite", queue=3) as server:
        server.append("anna", item_ids[:3])
        service = server.service
        submit = service._engine.call if what == "model" else service._committer.submit

        def send():
            if what == "model":
                return server.client.post("/v1/recommend", json={"user_id": "anna"})
            events = {"events": [{"item": item_ids[0]}]}
            return server.client.post("/v1/users/anna/events", json=events)

        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            with held(submit):
                futures = [pool.submit(send) for _ in range(9)]
                done, _ = concurrent.futures.wait(futures, 5, return_when="FIRST_COMPLETED")
                while len(done) < 6:
                    time.sleep(0.01)
                    done = {future for future in futures if future.done()}
            answers = [future.result(WAIT) for future in futures]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) == 6
        for answer in refused:
            server.refused(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1"
        if what == "store":
            assert server.client.get("/v1/users/anna").json()["length"] == 3 + 3
        assert send().status_code == 200


def test_too_many_open_requests_are_turned_away(run, item_ids, tmp_path, one_thread):
    with Server(run, tmp_path / "events.sqlite", in_flight=2) as server:
        server.append("anna", item_ids[:3])
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            with held(server.service._engine.call):
                futures = [
                    pool.submit(server.client.post, "/v1/recommend", json={"user_id": "anna"})
                    for _ in range(6)
                ]
                while sum(future.done() for future in futures) < 4:
                    time.sleep(0.01)
            answers = [future.result(WAIT) for future in futures]
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 4


def test_a_request_is_given_up_in_time(run, item_ids, tmp_path, one_thread):
    with Server(run, tmp_path / "events.sqlite", timeout=1.0) as server:
        server.append("anna", item_ids[:3])
        with held(server.service._engine.call):
            answer = server.client.post("/v1/recommend", json={"user_id": "anna"})
            server.refused(answer, 503, "timeout")
        assert len(server.recommend(user_id="anna")) == 10
        # What nobody waits for is not computed.
        assert "blossomrec_batch_requests_sum 1.0" in server.client.get("/metrics").text


def test_a_failing_computation_is_that_of_its_request_alone(server, item_ids, monkeypatch):
    server.append("anna", item_ids[:3])
    monkeypatch.setattr(server.service.version.ranking, "best", lambda *_: 1 / 0)
    answer = server.client.post("/v1/recommend", json={"user_id": "anna"})
    server.refused(answer, 500, "internal")
    monkeypatch.undo()
    assert len(server.recommend(user_id="anna")) == 10


def test_a_failing_store_is_that_of_its_request_alone(server, item_ids, monkeypatch):
    for user in ("anna", "ben"):
        server.append(user, item_ids[:3])
    reader = server.service._engine._reader
    original = reader.tail

    def failing(user, *others):
        if user == "anna":
            raise sqlite3.OperationalError("disk I/O error")
        return original(user, *others)

    monkeypatch.setattr(reader, "tail", failing)
    with held(server.service._engine.call):
        anna, ben = ask(server, "anna"), ask(server, "ben")
    assert len(ben.result(WAIT)[0]) == 5
    refusal = anna.exception(WAIT)
    assert isinstance(refusal, Refusal) and refusal.code == "store_failed"


def test_a_server_that_stopped_working_is_not_ready(server):
    assert server.client.get("/readyz").status_code == 200
    server.service._engine.close()
    server.refused(server.client.get("/readyz"), 503, "stopped")


def test_changes_that_wait_are_one_transaction(server, item_ids):
    def transactions():
        text = server.client.get("/metrics").text
        return float(text.split("blossomrec_commit_seconds_count ")[-1].split()[0])

    before = transactions()
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        with held(server.service._committer.submit):
            futures = [
                pool.submit(server.append, f"u{number}", item_ids[:2]) for number in range(20)
            ]
            while len(server.service._committer._changes) < 20:
                time.sleep(0.01)
        assert [future.result(WAIT)["length"] for future in futures] == [2] * 20
    # The one that was held, and one for all twenty.
    assert transactions() == before + 2


def test_a_refused_change_does_not_undo_its_neighbours(server, item_ids):
    def failing(store):
        store.append("ben", [], 0)
        raise ZeroDivisionError

    service = server.service
    with held(service._committer.submit):
        futures = [
            service._committer.submit(operation)
            for operation in (
                lambda store: store.switch(["a"], []),
                failing,
                lambda store: store._database.execute("nonsense"),
                lambda store: store.switch(["b"], []),
            )
        ]
    assert futures[0].result(WAIT) == ["a"] and futures[3].result(WAIT) == ["a", "b"]
    assert isinstance(futures[1].exception(WAIT), ZeroDivisionError)
    refusal = futures[2].exception(WAIT)
    assert isinstance(refusal, Refusal) and refusal.code == "store_failed"


def test_a_transaction_that_fails_fails_for_all(server, item_ids, monkeypatch, caplog):
    original = server.service._committer._store.transaction

    @contextlib.contextmanager
    def full():
        with original():
            yield
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(server.service._committer._store, "transaction", full)
    answer = server.client.post("/v1/users/anna/events", json={"events": [{"item": item_ids[0]}]})
    # What went wrong is for whoever runs the server.
    error = server.refused(answer, 503, "store_failed")
    assert "disk is full" not in answer.text
    assert f"[{error['id']}] the store of events failed: database or disk is full" in caplog.text
    monkeypatch.undo()
    server.refused(server.client.get("/v1/users/anna"), 404, "unknown_user")


def test_who_is_deleted_leaves_the_memory(server, item_ids):
    server.append("anna", item_ids[:9])
    before = server.recommend(user_id="anna", filter_viewed=False)
    cache = server.service.version.cache
    assert cache.get("anna") is not None
    server.client.delete("/v1/users/anna")
    assert cache.get("anna") is None
    # Somebody of the same name and with as many events is somebody else.
    server.append("anna", item_ids[20:29])
    assert server.recommend(user_id="anna", filter_viewed=False) != before


def test_traces_are_looked_for_until_they_are_gone(server, item_ids, monkeypatch):
    store, calls = server.service._committer._store, []
    original = store.erase

    def erase():
        calls.append(len(calls))
        if calls[-1] == 1:
            raise sqlite3.OperationalError("disk I/O error")
        original()

    monkeypatch.setattr(store, "erase", erase)
    server.append("anna", item_ids[:3])
    server.recommend(user_id="anna")

    def delete(user, status, erased):
        assert server.client.delete(f"/v1/users/{user}").status_code == status
        assert len(calls) == erased

    # The first time even for nobody: what was before this process is not known.
    delete("nobody", 404, 1)
    delete("nobody", 404, 1)
    delete("anna", 503, 2)
    assert "anna" not in server.service.version.cache
    delete("anna", 404, 3)
    delete("anna", 404, 3)


def test_who_is_deleted_while_asked_for_is_unknown(run, item_ids, tmp_path, one_thread):
    length = 20 * encoder.MANY_EVENTS
    with Server(run, tmp_path / "e.sqlite", max_len=length, max_events=length) as server:
        server.append("anna", [item_ids[place % 60] for place in range(length)])
        future = ask(server, "anna")
        while not len(server.service.version.cache):
            time.sleep(0.001)
        server.client.delete("/v1/users/anna")
        assert isinstance(future.exception(WAIT), Refusal)
        assert len(server.service.version.cache) == 0


def test_what_is_accepted_is_answered_before_the_end(run, item_ids, tmp_path, one_thread):
    server = Server(run, tmp_path / "events.sqlite")
    service = server.service
    with held(service._engine.call), held(service._committer.submit):
        asked = [service._engine.call(lambda number=number: number) for number in range(5)]
        stored = service._committer.submit(lambda store: store.switch(["x"], []))
        closing = threading.Thread(target=service.close)
        closing.start()
        while not service._committer._changes._closed:
            time.sleep(0.001)
        with pytest.raises(Refusal, match="stopping"):
            service._committer.submit(lambda store: None)
    closing.join(WAIT)
    assert [future.result(0) for future in asked] == list(range(5))
    assert stored.result(0) == ["x"]


def test_a_mailbox_waits_for_more_but_not_for_long():
    mailbox = Mailbox("test", 10)
    mailbox.put(1)
    start = time.monotonic()
    assert mailbox.take(3, wait=0.05) == [1]
    assert 0.04 < time.monotonic() - start < 5
    threading.Timer(0.02, mailbox.put, [3]).start()
    mailbox.put(2)
    start = time.monotonic()
    assert mailbox.take(2, wait=20) == [2, 3]
    assert time.monotonic() - start < 10
    assert mailbox.take(2, block=False) == []
    for number in range(10):
        mailbox.put(number)
    with pytest.raises(Refusal, match="10 requests are waiting for the test"):
        mailbox.put(10)
    mailbox.put(11, always=True)
    mailbox.close()
    assert mailbox.take(100, wait=20) == [*range(10), 11]
    assert mailbox.take(1) == []
