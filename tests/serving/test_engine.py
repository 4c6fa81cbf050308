"""Many requests at a time: computed together, bounded, in fair turns, each with its own weights."""

import concurrent.futures
import contextlib
import shutil
import sqlite3
import threading
import time

import numpy as np
import pytest
import torch
from places import metric
from serving_runs import Server, close, write_run

from blossomrec.errors import RunError
from blossomrec.serving import encoder
from blossomrec.serving.background import Background
from blossomrec.serving.engine import Question
from blossomrec.serving.histories import Histories
from blossomrec.serving.mailbox import Mailbox
from blossomrec.serving.ranking import Choice
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.sqlite_store import SQLiteStore
from blossomrec.serving.store import Event
from blossomrec.training.run import load_model, save_model

WAIT = 30


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


def ask(server, user, k=5):
    question = Question(user, np.empty(0, np.int64), Choice(k))
    return server.service._engine.recommend(server.service.release, question)


def names(best):
    return best[0].tolist()


def count_calls(monkeypatch, model):
    """How many users and events each extension of states had."""
    calls, original = [], type(model).extend_batch

    def counted(self, items, counts, states):
        calls.append(list(counts))
        return original(self, items, counts, states)

    monkeypatch.setattr(type(model), "extend_batch", counted)
    return calls


def test_requests_that_wait_are_computed_together(server, item_ids, monkeypatch):
    for user in range(6):
        server.append(user, item_ids[user : user + 4])
    alone = [names(ask(server, str(user)).result(WAIT)) for user in range(6)]
    for user in range(6):
        server.append(user, [item_ids[50]])
    calls = count_calls(monkeypatch, server.service.release.model)
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
    calls = count_calls(monkeypatch, server.service.release.model)
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
        store, own = SQLiteStore(server.store_path), server.service.release.encoder
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
    with Server(run, tmp_path / "events.sqlite", timeout=0.3) as server:
        server.append("anna", item_ids[:3])
        with held(server.service._engine.call):
            answer = server.client.post("/v1/recommend", json={"user_id": "anna"})
            server.refused(answer, 503, "timeout")
        assert len(server.recommend(user_id="anna")) == 10
        # What nobody waits for is not computed.
        assert "blossomrec_batch_requests_sum 1.0" in server.client.get("/metrics").text


def test_a_failing_computation_is_that_of_its_request_alone(server, item_ids, monkeypatch):
    server.append("anna", item_ids[:3])
    monkeypatch.setattr(server.service.release.ranking, "best", lambda *_: 1 / 0)
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


def test_a_run_with_another_vocabulary_is_refused(tiny_log, repeat_log, tmp_path):
    run, other = write_run(tmp_path / "a", tiny_log), write_run(tmp_path / "b", repeat_log)
    shutil.rmtree(run / "vocabulary")
    shutil.copytree(other / "vocabulary", run / "vocabulary")
    with pytest.raises(RunError, match=r"does not belong to config\.json"):
        Server(run, tmp_path / "events.sqlite")


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


def test_a_transaction_that_fails_fails_for_all(server, item_ids, monkeypatch):
    original = server.service._committer._store.transaction

    @contextlib.contextmanager
    def full():
        with original():
            yield
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(server.service._committer._store, "transaction", full)
    answer = server.client.post("/v1/users/anna/events", json={"events": [{"item": item_ids[0]}]})
    assert "disk is full" in server.refused(answer, 503, "store_failed")["message"]
    monkeypatch.undo()
    server.refused(server.client.get("/v1/users/anna"), 404, "unknown_user")


def test_who_is_deleted_leaves_the_memory(server, item_ids):
    server.append("anna", item_ids[:9])
    before = server.recommend(user_id="anna", filter_viewed=False)
    cache = server.service.release.cache
    assert cache.get("anna") is not None
    server.client.delete("/v1/users/anna")
    assert cache.get("anna") is None
    # Somebody of the same name and with as many events is somebody else.
    server.append("anna", item_ids[20:29])
    assert server.recommend(user_id="anna", filter_viewed=False) != before


def test_who_is_deleted_while_asked_for_is_unknown(run, item_ids, tmp_path, one_thread):
    length = 20 * encoder.MANY_EVENTS
    with Server(run, tmp_path / "e.sqlite", max_len=length, max_events=length) as server:
        server.append("anna", [item_ids[place % 60] for place in range(length)])
        future = ask(server, "anna")
        while not len(server.service.release.cache):
            time.sleep(0.001)
        server.client.delete("/v1/users/anna")
        assert isinstance(future.exception(WAIT), Refusal)
        assert len(server.service.release.cache) == 0


def test_a_new_model_is_taken_without_a_request_lost(tiny_log, repeat_log, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    ids = tiny_log.item_vocabulary.ids(np.arange(80)).to_list()
    with Server(run, tmp_path / "events.sqlite") as server:
        for user in range(4):
            server.append(user, ids[user : user + 30])
        wanted = {}
        for seed in (0, 1):
            write_run(run, tiny_log, seed=seed)
            version = server.reload().version
            wanted[version] = [server.recommend(user_id=user, k=20) for user in range(4)]
        assert len(wanted) == 2
        answers, over = [], threading.Event()

        def hammer(user):
            while not over.is_set():
                answers.append((user, server.post("/v1/recommend", {"user_id": user, "k": 20})))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(hammer, user) for user in range(4)]
            for number in range(6):
                write_run(run, tiny_log, seed=number % 2)
                server.reload()
                time.sleep(0.02)
            over.set()
            for future in futures:
                future.result(WAIT)
        assert {answer["model"] for _, answer in answers} == set(wanted)
        for user, answer in answers:
            assert close(answer["items"], wanted[answer["model"]][user])


def test_histories_are_encoded_before_a_new_model_is_used(
    tiny_log, item_ids, tmp_path, one_thread, monkeypatch
):
    run = write_run(tmp_path / "run", tiny_log)
    with Server(run, tmp_path / "events.sqlite", warm=3, max_len=2_000) as server:
        for number, user in enumerate("abcde"):
            server.append(user, [item_ids[(number + place) % 80] for place in range(900)])
        for user in "abcdea":
            server.recommend(user_id=user)
        write_run(run, tiny_log, seed=1)
        before = server.service.release
        server.reload()
        cache = server.service.release.cache
        # The three who were asked for last, in this order; nobody has asked since.
        assert cache.users() == ["a", "e", "d"] and len(before.cache) == 0
        assert metric(server.client.get("/metrics").text, "blossomrec_warming_users") == 0
        calls = count_calls(monkeypatch, server.service.release.model)
        warmed = {user: server.recommend(user_id=user, k=20) for user in "ade"}
        assert calls == []
        server.recommend(user_id="b")
        assert sum(map(sum, calls)) == 900
    with Server(run, tmp_path / "events.sqlite", max_len=2_000) as server:
        for user, answer in warmed.items():
            assert close(server.recommend(user_id=user, k=20), answer)


@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_until_it_is_ready_the_model_before_answers(
    tiny_log, item_ids, tmp_path, one_thread, seconds
):
    run = write_run(tmp_path / "run", tiny_log)
    length, users = 12 * encoder.MANY_EVENTS, ["a", "b", "c", "d"]
    options = {"max_len": length, "max_events": length, "warm_seconds": seconds}
    with Server(run, tmp_path / "e.sqlite", **options) as server:
        for user in users:
            server.append(user, [item_ids[place % 60] for place in range(length)])
            server.recommend(user_id=user)
        server.append("new", item_ids[:3])
        old = server.service.release.version
        write_run(run, tiny_log, seed=1)
        answers = []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(server.reload)
            while not future.done():
                # An answer in between any two pieces of a history.
                answers.append(server.post("/v1/recommend", {"user_id": "new"})["model"])
            new = future.result(WAIT).version
        assert set(answers) <= {old, new} and answers.count(old) > 0
        cache = server.service.release.cache
        if seconds:
            assert answers.count(old) > 10 and set(users) <= set(cache.users())
            return
        # What could not be had before is had afterwards.
        assert not set(users) <= set(cache.users())
        server.idle()
        assert set(users) <= set(cache.users())


def test_background_work_goes_on_while_there_is_always_something_else():
    background, done = Background(), concurrent.futures.Future()
    pieces = []

    def work():
        for number in range(3):
            time.sleep(0.01)
            pieces.append(number)
            yield

    background.add(work(), done)
    assert background.due and len(background) == 1
    background.step()
    # Nine pauses of its length; then it is its turn.
    assert not background.due and pieces == [0]
    end = time.monotonic() + WAIT
    while not done.done():
        assert time.monotonic() < end
        if background.due:
            background.step()
    assert pieces == [0, 1, 2] and not background
    waiting = concurrent.futures.Future()
    background.add(work(), waiting)
    background.clear()
    assert waiting.result(0) is None and not background


@pytest.mark.parametrize("pieces", range(6))
def test_who_is_deleted_is_not_encoded_again(run, item_ids, tmp_path, one_thread, pieces):
    length = 3 * encoder.MANY_EVENTS
    with Server(run, tmp_path / "e.sqlite", max_len=length, max_events=length) as server:
        for user in ("anna", "ben"):
            server.append(user, [item_ids[place % 60] for place in range(length)])
        service = server.service
        work = Histories(SQLiteStore(server.store_path), service.metrics)
        # Here the thread of the model is this one: nothing is asked of the other.
        with torch.inference_mode():
            steps = work.encode_again(service.release, ["ben", "anna"])
            assert all(next(steps, True) is None for _ in range(pieces))
            service._committer.submit(lambda store: store.delete("ben")).result(WAIT)
            service._engine.forget("ben").result(WAIT)
            assert list(steps) or pieces
        assert service.release.cache.users() == ["anna"]


def test_a_server_ends_before_all_is_encoded_again(tiny_log, item_ids, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    length = 20 * encoder.MANY_EVENTS
    options = {"max_len": length, "max_events": length, "warm_seconds": 0.0}
    with Server(run, tmp_path / "e.sqlite", **options) as server:
        server.append("anna", [item_ids[place % 60] for place in range(length)])
        server.recommend(user_id="anna")
        server.reload()
        assert len(server.service.release.cache) == 0
    assert len(server.service.release.cache) == 0


def test_a_store_that_fails_ends_what_has_no_hurry_and_nothing_else(
    server, item_ids, monkeypatch, caplog
):
    server.append("anna", item_ids[:3])
    before = server.recommend(user_id="anna")
    reader = server.service._engine._reader

    def failing(*_):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(reader, "tail", failing)
    server.reload()
    assert "given up" in caplog.text
    monkeypatch.undo()
    assert server.recommend(user_id="anna") == before
    monkeypatch.setattr(reader, "notices", failing)
    # What is switched off is not known any more: nothing is recommended.
    for body in ({"user_id": "anna"}, {"history": item_ids[:2]}):
        server.refused(server.client.post("/v1/recommend", json=body), 503, "store_failed")
    monkeypatch.undo()
    assert server.recommend(user_id="anna") == before


def test_a_model_with_other_items_skips_those_it_does_not_know(
    tiny_log, repeat_log, tmp_path, one_thread
):
    old, new = write_run(tmp_path / "old", tiny_log), write_run(tmp_path / "new", repeat_log)
    current = tmp_path / "current"
    current.symlink_to(old)
    known = repeat_log.item_vocabulary.ids(np.arange(repeat_log.num_items)).to_list()
    every = tiny_log.item_vocabulary.ids(np.arange(80)).to_list()
    strange = [item for item in every if item not in known]
    with Server(current, tmp_path / "events.sqlite") as server:
        history = [*strange[:4], *known[:5], *strange[4:8], *known[5:8]]
        server.append("anna", history)
        server.append("ben", strange[:3])
        server.post("/v1/items", {"off": [strange[0], known[20]]})
        current.unlink()
        current.symlink_to(new)
        server.reload()
        answer = server.recommend(user_id="anna", k=100)
        assert answer == server.recommend(history=known[:8], k=100)
        assert known[20] not in [one["item"] for one in answer]
        assert server.client.get("/v1/users/anna").json()["length"] == 16
        answer = server.client.post("/v1/recommend", json={"user_id": "ben"})
        server.refused(answer, 422, "no_known_item")
        answer = server.client.post("/v1/recommend", json={"history": strange[:1]})
        server.refused(answer, 422, "unknown_item")


def test_a_damaged_model_is_refused_and_the_one_before_stays(tiny_log, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    with Server(run, tmp_path / "events.sqlite") as server:
        version = server.service.release.version
        model = load_model(run)
        with torch.no_grad():
            model.item_embeddings.weight[3, 3] = torch.nan
        save_model(run, model)
        with pytest.raises(RunError, match=r"item_embeddings.weight is not finite"):
            server.reload()
        (run / "model.safetensors").write_bytes(b"junk")
        with pytest.raises(RunError, match="damaged"):
            server.reload()
        assert server.client.get("/readyz").json()["model"] == version


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
