"""Events and histories with items that the model does not know: kept, told, counted, refused."""

import numpy as np
import polars as pl
import pytest
from places import metric
from serving_runs import Server, close, write_run

from blossomrec.serving import Client, ServerError
from blossomrec.serving.version import catalogue

EVENTS = "/v1/users/anna/events"
RECOMMEND = "/v1/recommend"


@pytest.fixture
def refusing(run, tmp_path, one_thread):
    with Server(run, tmp_path / "refusing.sqlite", unknown_items="refuse") as running:
        yield running


def measured(server, where):
    text = server.client.get("/metrics").text
    return metric(text, f'blossomrec_unknown_items_total{{where="{where}"}}')


def test_events_of_unknown_items_are_kept_named_and_counted(server, item_ids):
    events = ["new", item_ids[0], 7, str(item_ids[1]), "7", "new"]
    answer = server.append("anna", events)
    # In the type of the catalogue, as far as they can be written so.
    assert answer["unknown_items"] == ["new", 7] and answer["stored"] == 6
    assert answer["model"] == server.service.version.id
    user = server.client.get("/v1/users/anna").json()
    assert user["length"] == 6 and user["model"] == answer["model"]
    assert [(one["item"], one["known"]) for one in user["events"]] == [
        ("new", False),
        (item_ids[0], True),
        (7, False),
        (item_ids[1], True),
        (7, False),
        ("new", False),
    ]
    assert measured(server, "events") == 4 and measured(server, "history") == 0
    assert server.recommend(user_id="anna") == server.recommend(history=item_ids[:2])


def test_who_has_unknown_items_alone_begins_with_the_first_known_one(server, item_ids):
    server.append("anna", ["new", "newer"])
    answer = server.client.post(RECOMMEND, json={"user_id": "anna"})
    assert server.refused(answer, 422, "no_known_item")["field"] == "user_id"
    server.append("anna", [item_ids[4]])
    assert server.recommend(user_id="anna") == server.recommend(history=[item_ids[4]])


@pytest.mark.parametrize("given", ["a\tb", "x\ufffdy", "x" * 257, "", 1.5])
def test_what_is_no_id_is_not_kept(server, item_ids, given):
    answer = server.client.post(EVENTS, json={"events": [{"item": "new"}, {"item": given}]})
    assert server.refused(answer, 422, "invalid")["field"] == "events[1].item"
    server.refused(server.client.get("/v1/users/anna"), 404, "unknown_user")


def test_unknown_items_of_a_history_are_skipped_and_named(server, item_ids):
    history = ["x", item_ids[0], 9, item_ids[1], "9"]
    answer = server.post(RECOMMEND, {"history": history})
    assert answer["unknown_items"] == ["x", 9]
    known = server.post(RECOMMEND, {"history": item_ids[:2]})
    assert (known["items"], known["unknown_items"]) == (answer["items"], [])
    asked = {"history": history, "item_id": item_ids[30]}
    why = server.post("/v1/explain", asked)
    assert why["items"] == item_ids[:2] and why["unknown_items"] == ["x", 9]
    assert measured(server, "history") == 6
    # What goes with the items that are skipped is still looked at.
    body = {"history": history, "times": [1]}
    assert server.refused(server.client.post(RECOMMEND, json=body), 422, "invalid")
    server.append("anna", history)
    assert "unknown_items" not in server.post(RECOMMEND, {"user_id": "anna"})


@pytest.mark.parametrize("path", [RECOMMEND, "/v1/explain"])
def test_a_history_needs_an_item_that_is_known(server, item_ids, path):
    more = {} if path == RECOMMEND else {"item_id": item_ids[0]}
    answer = server.client.post(path, json={"history": ["x", 9], **more})
    assert server.refused(answer, 422, "no_known_item")["field"] == "history"


def test_candidates_must_be_known(server, item_ids):
    body = {"history": item_ids[:2], "items": [item_ids[5], "x"]}
    answer = server.client.post(RECOMMEND, json=body)
    assert server.refused(answer, 422, "unknown_item")["field"] == "items[1]"


def test_unknown_items_are_refused_where_that_is_wanted(refusing, item_ids):
    events = [{"item": item_ids[0]}, {"item": "new"}]
    answer = refusing.client.post(EVENTS, json={"events": events})
    assert refusing.refused(answer, 422, "unknown_item")["field"] == "events[1].item"
    refusing.refused(refusing.client.get("/v1/users/anna"), 404, "unknown_user")
    for path, more in ((RECOMMEND, {}), ("/v1/explain", {"item_id": item_ids[5]})):
        body = {"history": [item_ids[0], "new"], **more}
        answer = refusing.client.post(path, json=body)
        assert refusing.refused(answer, 422, "unknown_item")["field"] == "history[1]"


def test_items_that_are_switched_must_be_known_where_that_is_wanted(refusing, item_ids):
    answer = refusing.client.post("/v1/items", json={"off": [item_ids[0], "none"]})
    assert refusing.refused(answer, 422, "unknown_item")["field"] == "off[1]"
    assert refusing.client.get("/v1/items").json() == {"off": [], "unknown_items": []}


def test_unknown_items_are_switched_off_and_on(server, item_ids):
    before = server.recommend(history=item_ids[:2], k=80)
    answer = server.post("/v1/items", {"off": ["new", item_ids[5], "7"]})
    assert answer == {"off": [*sorted([7, item_ids[5]]), "new"], "unknown_items": [7, "new"]}
    assert server.client.get("/v1/items").json() == answer
    after = server.recommend(history=item_ids[:2], k=80)
    assert [one["item"] for one in after] == [
        one["item"] for one in before if one["item"] != item_ids[5]
    ]
    answer = server.post("/v1/items", {"on": ["new", 7, item_ids[5]]})
    assert answer == {"off": [], "unknown_items": []}
    answer = server.client.post("/v1/items", json={"off": ["a\tb"]})
    assert server.refused(answer, 422, "invalid")["field"] == "off[0]"


def test_an_item_that_is_off_stays_off_once_a_model_knows_it(
    tiny_log, larger_log, tmp_path, one_thread
):
    old, new = write_run(tmp_path / "old", tiny_log), write_run(tmp_path / "new", larger_log)
    current = tmp_path / "current"
    current.symlink_to(old)
    every = larger_log.item_vocabulary.ids(np.arange(larger_log.num_items)).to_list()
    known = tiny_log.item_vocabulary.rows(every) >= 0
    added = [item for item, there in zip(every, known, strict=True) if not there]
    history, store = every[:2], tmp_path / "events.sqlite"
    with Server(current, store) as server:
        answer = server.post("/v1/items", {"off": [str(added[0])]})
        assert answer == {"off": added[:1], "unknown_items": added[:1]}
    # It is durable, and holds for the next model, in the same process or another one.
    with Server(current, store) as server:
        current.unlink()
        current.symlink_to(new)
        server.reload()
        off = [one["item"] for one in server.recommend(history=history, k=90)]
        assert added[0] not in off and added[1] in off
        assert server.post("/v1/items", {"on": [added[0]]})["off"] == []
        assert added[0] in [one["item"] for one in server.recommend(history=history, k=90)]


def test_the_client_tells_of_unknown_items(server, item_ids, monkeypatch):
    def ask(self, method, path, body=None, **_):
        answer = server.client.request(method, path, json=body)
        if answer.status_code >= 300:
            raise ServerError(answer.status_code, "refused", answer.text)
        return answer.json()

    monkeypatch.setattr(Client, "_once", ask)
    client = Client()
    assert client.model is None
    assert client.append("anna", [item_ids[0], "new"])["unknown_items"] == ["new"]
    assert client.model == server.service.version.id
    known = client.recommend_history(item_ids[:2])
    with pytest.warns(UserWarning, match=r"model does not know are skipped: 'a', 'b'$"):
        assert client.recommend_history(["a", item_ids[0], "b", item_ids[1]]) == known
    with pytest.warns(UserWarning, match=r"skipped: 1, 2, 3, 4, 5, \.\.\.$"):
        client.recommend_history([1, 2, 3, 4, 5, 6, item_ids[0]])


def test_an_event_counts_once_a_model_knows_its_item(tiny_log, larger_log, tmp_path, one_thread):
    """Its key still names it, in whichever type its id is sent."""
    old, new = write_run(tmp_path / "old", tiny_log), write_run(tmp_path / "new", larger_log)
    current = tmp_path / "current"
    current.symlink_to(old)
    every = larger_log.item_vocabulary.ids(np.arange(larger_log.num_items)).to_list()
    known = tiny_log.item_vocabulary.rows(every) >= 0
    added = [item for item, there in zip(every, known, strict=True) if not there]
    with Server(current, tmp_path / "events.sqlite") as server:
        first = {"item": str(added[0]), "key": "a"}
        answer = server.append("anna", [every[0], first, every[1], added[1]])
        assert answer["unknown_items"] == added[:2]
        before = server.post(RECOMMEND, {"user_id": "anna", "k": 90})
        current.unlink()
        current.symlink_to(new)
        server.reload()
        after = server.post(RECOMMEND, {"user_id": "anna", "k": 90})
        assert before["model"] != after["model"] == server.service.version.id
        whole = [every[0], added[0], every[1], added[1]]
        assert close(after["items"], server.recommend(history=whole, k=90))
        assert not close(after["items"], server.recommend(history=every[:2], k=90))
        answer = server.append("anna", [first, {"item": added[0], "key": "a"}])
        assert (answer["repeated"], answer["unknown_items"]) == (2, [])
        events = server.client.get("/v1/users/anna").json()["events"]
        assert [one["item"] for one in events] == whole and all(one["known"] for one in events)


@pytest.mark.parametrize("ids", [list(range(900, 870, -1)), [f"i{n}" for n in range(29)], []])
def test_a_catalogue_taken_in_pieces_is_whole(ids, monkeypatch):
    monkeypatch.setattr(catalogue, "PIECE", 7)
    for given in (ids, pl.Series(ids, dtype=pl.String if ids and ids[0] == "i0" else pl.Int64)):
        found = catalogue.Catalogue(given)
        assert len(found) == len(ids)
        assert found.rows(ids).tolist() == list(range(len(ids)))
        assert [found.id(row) for row in range(len(ids))] == ids
        assert found.unknown(["x", *ids[:2], 5, "5"]) == ["x", 5 if ids[:1] == [900] else "5"]
