"""Models that are taken while the server runs, and the histories that are encoded for them."""

import concurrent.futures
import shutil
import sqlite3
import threading
import time

import numpy as np
import pytest
import torch
from places import metric
from serving_runs import WAIT, Server, close, count_calls, write_run

from blossomrec.errors import RunError
from blossomrec.run.weights import load_model, save_model
from blossomrec.serving.engine.reading import Histories
from blossomrec.serving.engine.work import Background
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.version import encoder


def test_a_run_with_another_vocabulary_is_refused(tiny_log, repeat_log, tmp_path):
    run, other = write_run(tmp_path / "a", tiny_log), write_run(tmp_path / "b", repeat_log)
    shutil.rmtree(run / "vocabulary")
    shutil.copytree(other / "vocabulary", run / "vocabulary")
    with pytest.raises(RunError, match=r"does not belong to config\.json"):
        Server(run, tmp_path / "events.sqlite")


def test_a_new_model_is_taken_without_a_request_lost(tiny_log, repeat_log, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    ids = tiny_log.item_vocabulary.ids(np.arange(80)).to_list()
    with Server(run, tmp_path / "events.sqlite") as server:
        for user in range(4):
            server.append(user, ids[user : user + 30])
        wanted = {}
        for seed in (0, 1):
            write_run(run, tiny_log, seed=seed)
            version = server.reload().id
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
        before = server.service.version
        server.reload()
        cache = server.service.version.cache
        # The three who were asked for last, in this order; nobody has asked since.
        assert cache.users() == ["a", "e", "d"] and len(before.cache) == 0
        assert metric(server.client.get("/metrics").text, "blossomrec_warming_users") == 0
        calls = count_calls(monkeypatch, server.service.version.model)
        warmed = {user: server.recommend(user_id=user, k=20) for user in "ade"}
        assert calls == []
        server.recommend(user_id="b")
        assert sum(map(sum, calls)) == 900
    with Server(run, tmp_path / "events.sqlite", max_len=2_000) as server:
        for user, answer in warmed.items():
            assert close(server.recommend(user_id=user, k=20), answer)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
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
        old = server.service.version.id
        write_run(run, tiny_log, seed=1)
        answers = []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(server.reload)
            while not future.done():
                # An answer in between any two pieces of a history.
                answers.append(server.post("/v1/recommend", {"user_id": "new"})["model"])
            new = future.result(WAIT).id
        # Never the one before again once the new one has answered.
        assert answers == sorted(answers, key=[old, new].index)
        cache = server.service.version.cache
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
            steps = work.encode_again(service.version, ["ben", "anna"])
            assert all(next(steps, True) is None for _ in range(pieces))
            service._committer.submit(lambda store: store.delete("ben")).result(WAIT)
            service._engine.forget("ben").result(WAIT)
            assert list(steps) or pieces
        assert service.version.cache.users() == ["anna"]


def test_a_server_ends_before_all_is_encoded_again(tiny_log, item_ids, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    length = 20 * encoder.MANY_EVENTS
    options = {"max_len": length, "max_events": length, "warm_seconds": 0.0}
    with Server(run, tmp_path / "e.sqlite", **options) as server:
        server.append("anna", [item_ids[place % 60] for place in range(length)])
        server.recommend(user_id="anna")
        server.reload()
        assert len(server.service.version.cache) == 0
    assert len(server.service.version.cache) == 0


def test_a_store_that_fails_ends_what_has_no_hurry_and_nothing_else(
    server, item_ids, monkeypatch, caplog
):
    for user in ("anna", "ben", "carl"):
        server.append(user, item_ids[:3])
        before = server.recommend(user_id=user)
    reader, tail = server.service._engine._reader, server.service._engine._reader.tail

    def failing(*_):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(
        reader, "tail", lambda user, *rest: failing() if user == "carl" else tail(user, *rest)
    )
    server.reload()
    # One that cannot be read keeps nobody else from theirs; the store itself is given up.
    assert caplog.text.count("a history is not encoded again: disk I/O error") == 1
    assert "given up" not in caplog.text
    monkeypatch.undo()
    server.recommend(user_id="carl")
    monkeypatch.setattr(reader, "tail", failing)
    server.reload()
    assert "given up" in caplog.text
    monkeypatch.undo()
    assert server.recommend(user_id="carl") == before
    monkeypatch.setattr(reader, "notices", failing)
    # What is switched off is not known any more: nothing is recommended.
    for body in ({"user_id": "anna"}, {"history": item_ids[:2]}):
        server.refused(server.client.post("/v1/recommend", json=body), 503, "store_failed")
    monkeypatch.undo()
    assert server.recommend(user_id="carl") == before


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
        server.refused(answer, 422, "no_known_item")


def test_a_damaged_model_is_refused_and_the_one_before_stays(tiny_log, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log)
    with Server(run, tmp_path / "events.sqlite") as server:
        version = server.service.version.id
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
