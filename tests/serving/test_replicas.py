"""Several servers on one store: each knows what was done at the others."""

import threading

import pytest
from places import Place
from serving_runs import Process, Server, close

from blossomrec.serving import Client, ServerError


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def where(request, tmp_path_factory):
    """A store of each kind that several tests share."""
    if request.param == "sqlite":
        return Place(tmp_path_factory.mktemp("replicas")).where
    # Another database than that of tests that need an empty one.
    return request.getfixturevalue("redis_server").where[:-1] + "1"


@pytest.fixture(scope="module")
def pair(run, where):
    """Two servers in processes of their own, and a client of each."""
    with (
        Process(run, where) as one,
        Process(run, where) as other,
        Client(one.url) as here,
        Client(other.url) as there,
    ):
        yield here, there


def test_two_processes_are_one_server(pair, run, where, item_ids, one_thread):
    here, there = pair
    history = item_ids[:10]
    here.append("anna", history)
    for number, client in enumerate((there, here, there, here)):
        # What was encoded before, in either process, is not all any more.
        assert close(client.recommend("anna", 5), client.recommend_history(history, 5))
        history = [*history, item_ids[20 + number]]
        client.append("anna", history[-1:])
    assert close(here.recommend("anna", 5), there.recommend("anna", 5))

    off = there.recommend("anna", 1)[0]["item"]
    assert here.switch([off]) == [off]
    for client in pair:
        assert off not in [one["item"] for one in client.recommend("anna", 80)]
        assert off not in [one["item"] for one in client.recommend_history(history, 80)]
        assert off not in [one["item"] for one in client.similar(item_ids[:1], 80)[0]["similar"]]
    with Server(run, where) as third:
        assert off not in [one["item"] for one in third.recommend(user_id="anna", k=80)]
    assert there.switch(on=[off]) == []
    assert here.recommend("anna", 1)[0]["item"] == off

    assert [one["user_id"] for one in there.users()] == ["anna"]
    assert there.delete("anna") == len(history)
    with pytest.raises(ServerError, match="no events of user 'anna'"):
        here.recommend("anna")
    there.append("anna", item_ids[40:44])
    assert close(here.recommend("anna", 5), here.recommend_history(item_ids[40:44], 5))


def test_two_processes_that_append_for_the_same_users(pair, item_ids):
    wanted = {f"u{number}": [] for number in range(3)}

    def load(client, name):
        for number in range(40):
            user, key = f"u{number % 3}", f"{name}-{number}"
            client.append(user, [{"item": item_ids[number], "key": key}] * 2)
            wanted[user].append(item_ids[number])

    threads = [threading.Thread(target=load, args=one) for one in zip(pair, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for user, items in wanted.items():
        for client in pair:
            found = client.user(user, 1_000)
            assert sorted(event["item"] for event in found["events"]) == sorted(items)
        assert close(pair[0].recommend(user, 5), pair[1].recommend(user, 5))


def test_who_is_deleted_elsewhere_is_looked_for_again(
    run, place, item_ids, one_thread, monkeypatch
):
    """Where the store fails in between, they would stay in memory otherwise."""
    with Server(run, place) as here, Server(run, place) as there:
        for user in ("anna", "carl"):
            here.append(user, item_ids[:9])
            there.recommend(user_id=user)
        reader = there.service._engine._reader
        failed = []

        def failing(users):
            failed.append(users)
            monkeypatch.undo()
            raise reader.failures[0]("away")

        monkeypatch.setattr(reader, "numbers", failing)
        here.client.delete("/v1/users/anna")
        for _ in range(2):
            there.recommend(user_id="carl")
            there.idle()
        assert failed and there.service.version.cache.users() == ["carl"]


def test_who_is_deleted_elsewhere_leaves_the_memory(run, place, item_ids, one_thread):
    with Server(run, place) as here, Server(run, place) as there:
        for user in ("anna", "ben", "carl"):
            here.append(user, item_ids[:9])
            there.recommend(user_id=user)
        cache = there.service.version.cache
        assert "anna" in cache and "ben" in cache
        here.client.delete("/v1/users/anna")
        here.client.delete("/v1/users/ben")
        here.append("ben", item_ids[:9])
        # Another's request tells; then there is time for it.
        there.recommend(user_id="carl")
        there.idle()
        assert cache.users() == ["carl"]
