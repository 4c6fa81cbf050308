"""A store of events in Redis or Valkey: what it may lose, and what happens when it is gone."""

import logging
import sys
import threading
import time

import pytest
from places import DURABLE, Redis, missing
from serving_runs import Process, Server, close

from blossomrec.errors import ConfigError, DataError
from blossomrec.serving import Client, ServerError
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.store import Event
from command_line import refuse

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def start(tmp_path):
    """Starts servers of the test's own."""
    servers = []

    def started(*flags):
        folder = tmp_path / f"redis-{len(servers)}"
        folder.mkdir()
        servers.append(Redis(folder, *flags))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


def append(store, user, *items):
    with store.transaction():
        return store.append(user, [Event(item) for item in items], 0)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--appendonly", "no"], "no append-only file.*--appendonly yes --appendfsync always"),
        (
            [*DURABLE, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
            "throws keys away.*allkeys-lru.*noeviction",
        ),
    ],
)
def test_a_server_that_would_lose_events_is_refused(start, flags, words):
    place = start(*flags)
    with pytest.raises(DataError, match=words) as error:
        place.open()
    assert place.where in str(error.value)
    assert place.ask("DBSIZE") == b":0\r\n"


def test_a_server_that_may_lose_the_last_second_is_warned_of(start, caplog):
    flags = ["--appendonly", "yes", "--no-appendfsync-on-rewrite", "yes"]
    with caplog.at_level(logging.WARNING):
        start(*flags).open().close()
    everysec, rewrite = (record.getMessage() for record in caplog.records)
    assert "appendfsync everysec" in everysec and "only always keeps everything" in everysec
    assert "no-appendfsync-on-rewrite yes" in rewrite
    caplog.clear()
    start().open().close()
    assert not caplog.records


def test_what_is_no_store_is_said(redis_server, run, capsys):
    redis_server.ask("SET", "blossomrec:format", "9")
    with pytest.raises(DataError, match="has format 9: this version reads format 2"):
        redis_server.open()
    redis_server.ask("FLUSHALL")
    for where, words in (
        ("redis://:secret@127.0.0.1:1/0", ["redis://127.0.0.1:1/0 cannot be used"]),
        ("redis://127.0.0.1:port/0", ["store is redis://127.0.0.1:port/0"]),
        ("http://127.0.0.1:1", ["store is 'http://127.0.0.1:1'", "redis://"]),
    ):
        for verb in ("serve", "import-events"):
            shown = refuse(capsys, verb, run, "--store", where, words=words)
            assert "secret" not in "".join(shown)
    with pytest.raises(ConfigError):
        store_opener("mysql://127.0.0.1/0")


def test_a_missing_extra_is_named(run, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "blossomrec.serving.stores.redis_store", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    words = ["'redis'", "pip install 'blossomrec[redis]'"]
    refuse(capsys, "serve", run, "--store", "redis://127.0.0.1:1/0", words=words)


def test_a_server_that_was_emptied_is_not_taken_for_the_one_before(redis_server, run, item_ids):
    redis_server.ask("FLUSHDB")
    with Server(run, redis_server) as server:
        server.append("anna", item_ids[:10])
        server.recommend(user_id="anna")
        redis_server.ask("FLUSHDB")
        server.append("anna", item_ids[20:35])
        wanted = server.recommend(history=item_ids[20:35])
        assert close(server.recommend(user_id="anna"), wanted)


@pytest.mark.parametrize("come_back", [False, True])
def test_who_is_deleted_between_two_looks_is_no_damage(redis_server, monkeypatch, come_back):
    """Another server may delete whom this one is reading."""
    redis_server.ask("FLUSHDB")
    here, there = redis_server.open(), redis_server.open()
    look = here._found

    def looked(user):
        found = look(user)
        monkeypatch.undo()
        with there.transaction():
            there.delete(user)
        if come_back:
            append(there, user, "bread")
        return found

    for read in (lambda: here.tail("anna", 0, 0, 9), lambda: here.profile("anna", 9)):
        append(there, "anna", "milk", "eggs")
        monkeypatch.setattr(here, "_found", looked)
        found = read()
        assert (found is not None) == come_back
        if found is not None:
            assert found.length == 1
            assert found == read()
            with there.transaction():
                there.delete("anna")
    here.close()
    there.close()


@pytest.mark.parametrize("look", ["zscore", "zrevrank"])
def test_a_list_goes_on_behind_who_is_deleted_meanwhile(redis_server, monkeypatch, look):
    redis_server.ask("FLUSHDB")
    here, there = redis_server.open(), redis_server.open()
    for user in ("carl", "ben", "anna"):
        append(there, user, "milk")
    first, *others = here.members(9)
    looked = getattr(here._redis, look)

    def deleted_behind(*key):
        found = looked(*key)
        with there.transaction():
            there.delete(first.user)
        return found

    monkeypatch.setattr(here._redis, look, deleted_behind)
    # The place may be that of a moment ago: the last of them stands behind it in any case.
    assert here.members(9, first.cursor)[-1] == others[-1]
    here.close()
    there.close()


def test_snapshots_are_rid_of_the_deleted_too(start):
    place = start("--appendonly", "yes", "--appendfsync", "always", "--save", "3600 1")
    store = place.open()
    append(store, "anna-the-first", "milk")
    append(store, "ben", "milk")
    place.ask("SAVE")
    assert b"anna-the-first" in (place.folder / "dump.rdb").read_bytes()
    with store.transaction():
        store.delete("anna-the-first")
    # One that has begun before the deletion is of no use.
    place.ask("BGREWRITEAOF")
    store.erase()
    assert b"anna-the-first" not in place.content()
    assert b"ben" in (place.folder / "dump.rdb").read_bytes()
    store.close()


def test_files_that_cannot_be_written_anew_are_said(start):
    place = start()
    store = place.open()
    append(store, "anna", "milk")
    with store.transaction():
        store.delete("anna")
    (folder,) = (one for one in place.folder.iterdir() if one.is_dir())
    moved = folder.rename(folder.with_name("moved"))
    folder.write_text("in its place")
    with pytest.raises(Refusal, match="delete again") as refused:
        store.erase()
    assert (refused.value.status, refused.value.code) == (503, "not_erased")
    folder.unlink()
    moved.rename(folder)
    store.erase()
    assert b"anna" not in place.content()
    store.close()


def test_no_acknowledged_event_is_lost_when_the_store_is_killed(start, run, item_ids):
    """The server says that it cannot store, and goes on when the store is back."""
    place = start()
    with Process(run, place.where) as server:
        stop, acknowledged, errors = threading.Event(), [], []

        def load(number):
            client, sent = Client(server.url, retries=0), 0
            while not stop.is_set():
                key = f"{number}-{(sent := sent + 1)}"
                try:
                    client.append(f"u{number}", [{"item": item_ids[0], "key": key}])
                    acknowledged.append((f"u{number}", key))
                except ServerError as error:
                    errors.append(error)

        threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            grown(acknowledged, 20)
            place.kill()
            grown(errors, 3)
            place.start()
        grown(acknowledged, 20)
        stop.set()
        for thread in threads:
            thread.join()
        assert {(error.status, error.code) for error in errors} <= {(503, "store_failed")}
        with Client(server.url) as client:
            assert len(client.recommend("u0", 3, filter_viewed=False)) == 3
    store = place.open()
    for number in range(3):
        stored = [event.key for event in store.profile(f"u{number}", 10**6).last]
        assert len(stored) == len(set(stored))
        assert {key for user, key in acknowledged if user == f"u{number}"} <= set(stored)
    store.close()


def test_a_store_that_stands_still_is_given_up_in_time(start, run, item_ids):
    place = start()
    with Process(run, place.where, "--timeout", "1.5") as server, Client(server.url) as client:
        client.append("anna", item_ids[:3])
        place.pause(True)
        begun = time.monotonic()
        for name, given in (("append", item_ids[:1]), ("recommend", 5)):
            with pytest.raises(ServerError) as refused, Client(server.url, retries=0) as other:
                getattr(other, name)("anna", given)
            assert (refused.value.status, refused.value.code) == (503, "timeout")
        assert time.monotonic() - begun < 10
        place.pause(False)
        until(lambda: answered(client))


def grown(listed, more):
    reached = len(listed) + more
    until(lambda: len(listed) > reached)


def answered(client):
    try:
        return len(client.recommend("anna", 3)) == 3
    except ServerError:
        return False


def until(reached, seconds=60):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)
