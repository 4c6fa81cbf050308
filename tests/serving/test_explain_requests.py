"""Explanations over HTTP: the same as those of the model, and what is refused."""

import threading

import numpy as np
import pytest
from serving_runs import Process, Server, write_run

from blossomrec.explanation.answer import explained
from blossomrec.explanation.explain import explain
from blossomrec.recommender import BlossomRec
from blossomrec.serving import Client
from blossomrec.serving.engine import explainer
from blossomrec.serving.http import schemas

EXPLAIN = "/v1/explain"


@pytest.fixture
def server(tiny_log, tmp_path, one_thread):
    """A server of a model with two layers and two key/value heads that sees 20 events."""
    run = write_run(tmp_path / "two", tiny_log, layers=2, heads=4, kv_heads=2)
    with Server(run, tmp_path / "events.sqlite") as running:
        yield running


def test_an_explanation_adds_up_and_names_blocks_and_recent_events(server, item_ids):
    history = [*item_ids[40:70], *item_ids[:3]]
    server.append("anna", history)
    item = server.recommend(user_id="anna", k=1)[0]
    answer = server.post(EXPLAIN, {"user_id": "anna", "item_id": item["item"], "k": 4})
    schemas.Explained.model_validate(answer)
    assert answer["item"] == item["item"]
    assert answer["score"] == pytest.approx(item["score"], abs=1e-4)
    total = sum(answer["contributions"]) + answer["rest"]
    assert total == pytest.approx(answer["score"], abs=1e-4)
    assert (answer["length"], answer["start"], answer["block_size"]) == (33, 13, 4)
    assert answer["items"] == history[13:]
    shares = [event["contribution"] for event in answer["events"]]
    assert shares == sorted(shares, reverse=True) and len(shares) == 4
    assert shares[0] == pytest.approx(max(answer["contributions"]), abs=1e-5)
    for event in answer["events"]:
        assert event["item"] == history[event["position"]]
    for layer in answer["layers"]:
        long, short = layer["long"], layer["short"]
        for seen in (long["blocks"], short["events"]):
            assert sum(one["weight"] for one in seen) == pytest.approx(1, abs=1e-4)
        assert [block["own"] for block in long["blocks"]].count(True) == 1
        assert long["blocks"][-1]["own"] and long["blocks"][-1]["heads"] == 2
        for block in long["blocks"]:
            positions = [event["position"] for event in block["events"]]
            assert positions == list(range(positions[0], positions[0] + len(positions)))
            assert (positions[0] - 13) % 4 == 0 and len(positions) == 4
            weight = sum(event["weight"] for event in block["events"])
            assert weight == pytest.approx(block["weight"], abs=1e-5)
        places = [event["position"] for event in short["events"]]
        assert places == [16, 24, 28, 30, 31, 32]


def test_a_user_and_the_same_history_are_explained_alike(server, item_ids):
    history = item_ids[5:25]
    # As text, as they come in an address.
    server.append(12, [str(item) for item in history])
    given = server.post(EXPLAIN, {"history": history, "item_id": item_ids[40]})
    asked = {"user_id": 12, "item_id": item_ids[40]}
    assert given.pop("unknown_items") == []
    assert server.post(EXPLAIN, asked) == given
    answer = server.client.get(EXPLAIN, params=asked)
    assert answer.status_code == 200 and answer.json() == given
    rows = np.arange(5, 25)
    wanted = explain(server.service.version.model, rows, 40).contributions
    assert given["contributions"] == pytest.approx(wanted.tolist(), abs=1e-4)
    # What was seen counts too: any item can be asked for.
    assert server.post(EXPLAIN, asked | {"item_id": history[0]})["item"] == history[0]


def test_the_library_explains_as_the_server_does(server, item_ids):
    recommender = BlossomRec.from_pretrained(server.service.version.run)
    history, item = [*item_ids[40:70], *item_ids[:3]], item_ids[9]
    served = server.post(EXPLAIN, {"history": history, "item_id": item, "k": 3})
    assert served.pop("unknown_items") == []
    alone = recommender.explain(item, history=history, k=3)
    assert list(alone) == list(served) and served["start"] == 13
    assert alone == served
    log = recommender.log
    user = log.user_vocabulary.ids([59])[0]
    events = log.item_vocabulary.ids(log.history(59).items).to_list()
    server.append(user, events)
    of_user = server.post(EXPLAIN, {"user_id": user, "item_id": item})
    assert recommender.explain(item, user=user) == of_user
    assert of_user["length"] == len(events) > 1


def test_one_more_event_is_seen(server, item_ids):
    server.append("anna", item_ids[:5])
    asked = {"user_id": "anna", "item_id": item_ids[50]}
    assert server.post(EXPLAIN, asked)["items"] == item_ids[:5]
    server.append("anna", item_ids[5:7])
    assert server.post(EXPLAIN, asked)["items"] == item_ids[:7]
    server.client.delete("/v1/users/anna")
    server.refused(server.client.post(EXPLAIN, json=asked), 404, "unknown_user")


@pytest.mark.parametrize(
    "query, status, code, field",
    [
        ("user_id=anna&item_id=none", 422, "unknown_item", "item_id"),
        ("user_id=nobody&item_id=50003", 404, "unknown_user", "user_id"),
        ("user_id=anna", 422, "invalid", "item_id"),
        ("item_id=50003", 422, "invalid", "user_id"),
        ("user_id=&item_id=50003", 422, "invalid", "user_id"),
        ("user_id=%00&item_id=50003", 422, "invalid", "user_id"),
        ("user_id=anna&item_id=", 422, "invalid", "item_id"),
        ("user_id=anna&item_id=50003&k=0", 422, "invalid", "k"),
        ("user_id=anna&item_id=50003&k=1001", 422, "too_many", "k"),
        ("user_id=anna&item_id=50003&k=x", 422, "invalid", "k"),
    ],
)
def test_what_is_wrong_is_said(server, item_ids, query, status, code, field):
    server.append("anna", item_ids[:3])
    error = server.refused(server.client.get(f"{EXPLAIN}?{query}"), status, code)
    assert error["field"] == field


@pytest.mark.parametrize(
    "body, code, field",
    [
        ({"history": []}, "invalid", "history"),
        ({"history": ["none"]}, "no_known_item", "history"),
        ({"history": [50_003] * 10_001}, "too_many", "history"),
        ({"history": [50_003], "user_id": "anna"}, "invalid", "user_id"),
        ({}, "invalid", "user_id"),
        ({"history": [50_003], "why": 1}, "invalid", "why"),
    ],
)
def test_what_is_wrong_with_a_history_is_said(server, body, code, field):
    answer = server.client.post(EXPLAIN, json={"item_id": 50_003, **body})
    assert server.refused(answer, 422, code)["field"] == field


def test_models_without_blossom_attention_are_refused(tiny_log, item_ids, tmp_path, one_thread):
    run = write_run(tmp_path / "run", tiny_log, attention="full")
    with Server(run, tmp_path / "events.sqlite") as server:
        answer = server.client.post(EXPLAIN, json={"history": item_ids[:2], "item_id": item_ids[3]})
        assert "attention full" in server.refused(answer, 422, "not_explainable")["message"]


def test_only_so_many_wait(server, item_ids, monkeypatch):
    monkeypatch.setattr(explainer, "MOST_WAITING", 1)
    going, on = threading.Event(), threading.Event()

    def slowly(*arguments):
        going.set()
        on.wait(20)
        return explained(*arguments)

    monkeypatch.setattr(explainer, "explained", slowly)
    body = {"history": item_ids[:4], "item_id": item_ids[5]}
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(server.client.post(EXPLAIN, json=body).status_code)
    )
    first.start()
    assert going.wait(20)
    refused = server.client.post(EXPLAIN, json=body)
    # Recommendations do not wait for it.
    assert len(server.recommend(history=item_ids[:4])) == 10
    on.set()
    first.join()
    server.refused(refused, 503, "overloaded")
    assert refused.headers["Retry-After"] == "1"
    assert answers == [200]


def test_the_client_asks_for_explanations(run, item_ids, tmp_path):
    with Process(run, tmp_path / "events.sqlite") as process, Client(process.url) as client:
        client.append("anna", item_ids[:9])
        found = client.explain("anna", item_ids[20], k=2)
        assert found["item"] == item_ids[20] and len(found["events"]) == 2
        given = client.explain_history(item_ids[:9], item_ids[20], k=2)
        assert given == found | {"unknown_items": []}


def test_titles_are_null_where_none_are_known(server, item_ids):
    answer = server.post("/v1/titles", {"items": item_ids[:2]})
    assert answer == {"known": False, "titles": [None, None]}
