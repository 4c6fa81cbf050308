"""Events with kinds and context over HTTP: what is taken, stored, given back and refused."""

import dataclasses
import json
import math

import pytest
from serving_runs import Process, Server

from blossomrec.data.fields import ContextField, EventFields
from blossomrec.errors import DataError
from blossomrec.serving import Client
from blossomrec.serving.given import as_events
from blossomrec.serving.version.fields import KnownFields

EVENTS, RECOMMEND = "/v1/users/anna/events", "/v1/recommend"
FIELDS = EventFields(
    ("click", "buy"),
    (ContextField("shop", "category", ("web", "app")), ContextField("price", "number")),
)
LONG = "x" * 257


def teach(server, *inputs):
    """Let the server's model know kinds and context, and see some of what there is."""
    version = server.service.version
    known = KnownFields(FIELDS, None, (*version.model.inputs, *inputs))
    server.service.version = dataclasses.replace(version, known=known)


def test_kind_and_context_are_given_back_where_they_are_told(server, item_ids):
    told = {"kind": "buy", "context": {"shop": "web", "price": 2.5, "no": 3, "gone": None}}
    server.append("anna", [{"item": item_ids[0], "timestamp": 5, **told}, item_ids[1]])
    server.append("anna", [{"item": item_ids[2], "context": {"gone": None}}, item_ids[3]])
    first, *others = server.client.get("/v1/users/anna").json()["events"]
    context = {"shop": "web", "price": 2.5, "no": 3}
    told = {"timestamp": 5, "kind": "buy", "context": context}
    assert first == {"item": item_ids[0], "known": True, **told}
    assert all(set(one) == {"item", "timestamp", "known"} for one in others)


@pytest.mark.parametrize(
    "event, field, words",
    [
        ({"kind": 5}, "kind", "kind is 5: a kind is text"),
        ({"kind": ""}, "kind", "1 to 256 characters"),
        ({"kind": LONG}, "kind", "a kind has 1 to 256 characters, this one 257"),
        ({"kind": "\ud800"}, "kind", "U+D800 is in it"),
        ({"context": "web"}, "context", "dict"),
        ({"context": [1]}, "context", "dict"),
        ({"context": {"": 1}}, "context", "a name has 1 to 256 characters"),
        ({"context": {LONG: 1}}, "context", "a name has 1 to 256 characters"),
        ({"context": {"a\n": 1}}, "context", "U+000A is in it"),
        ({"context": dict.fromkeys(map(str, range(65)), 1)}, "context", "at most 64 names"),
        ({"context": {"shop": [1]}}, "context.shop", "[1]: text, a number or null is needed"),
        ({"context": {"shop": True}}, "context.shop", "True: text, a number or null is needed"),
        ({"context": {"shop": {}}}, "context.shop", "text, a number or null is needed"),
        ({"context": {"shop": LONG}}, "context.shop", "a value has 1 to 256 characters"),
        ({"context": {"shop": "\ud800"}}, "context.shop", "U+D800 is in it"),
        ({"context": {"price": math.nan}}, "context.price", "a number is at most 3e+38"),
        ({"context": {"price": -math.inf}}, "context.price", "a number is at most 3e+38"),
        ({"context": {"price": 10**39}}, "context.price", "a number is at most 3e+38"),
        ({"contexts": {}}, "contexts", "not permitted"),
    ],
)
def test_of_a_wrong_kind_or_context_nothing_is_stored(server, item_ids, event, field, words):
    body = json.dumps({"events": [{"item": item_ids[0]}, {"item": item_ids[0], **event}]})
    answer = server.client.post(EVENTS, content=body, headers={"content-type": "application/json"})
    error = server.refused(answer, 422, "invalid")
    assert error["field"] == f"events[1].{field}"
    assert error["field"] in error["message"] and words in error["message"]
    server.refused(server.client.get("/v1/users/anna"), 404, "unknown_user")


def test_a_key_belongs_to_one_kind_and_context(server, item_ids):
    event = {"item": item_ids[0], "key": "a", "kind": "buy", "context": {"shop": "web"}}
    answer = server.append("anna", [event, event | {"context": {"x": None, "shop": "web"}}])
    assert [answer[name] for name in ("stored", "repeated", "length")] == [1, 1, 1]
    for other in ({"kind": "click"}, {"kind": None}, {"context": {"shop": "app"}}, {"context": {}}):
        answer = server.client.post(EVENTS, json={"events": [event | other]})
        error = server.refused(answer, 409, "key_reused")
        assert error["field"] == "events[0].key" and "web" not in answer.text


@pytest.mark.parametrize("told", ["keep", "refuse"])
def test_what_the_model_does_not_know_is_kept_or_refused(run, item_ids, tmp_path, told, one_thread):
    with Server(run, tmp_path / "events.sqlite", unknown_values=told) as server:
        teach(server)
        known = {"kind": "buy", "context": {"shop": "app", "price": 3, "other": None}}
        server.append("anna", [{"item": item_ids[0], **known}, item_ids[1]])
        for unknown, field, words in (
            ({"kind": "gift"}, "kind", "the model does not know kind 'gift'"),
            ({"context": {"shop": "fax"}}, "context.shop", "'shop' with 'fax'"),
            ({"context": {"till": 7}}, "context.till", "context column 'till'"),
        ):
            event = {"item": item_ids[2], **unknown}
            if told == "keep":
                server.append("anna", [event])
                found = server.client.get("/v1/users/anna?last=1").json()["events"][0]
                assert {name: found[name] for name in unknown} == unknown
            else:
                answer = server.client.post(EVENTS, json={"events": [item_ids and event]})
                error = server.refused(answer, 422, "unknown_value")
                assert error["field"] == f"events[0].{field}" and words in error["message"]
            history = {"history": item_ids[:2]}
            lists = {"kinds": [None, unknown.get("kind")], "contexts": [None, None]}
            lists["contexts"][1] = unknown.get("context")
            answer = server.client.post(RECOMMEND, json=history | lists)
            if told == "refuse":
                error = server.refused(answer, 422, "unknown_value")
                part, _, column = field.partition(".")
                assert error["field"] == f"{part}s[1]" + (column and f".{column}")
            else:
                assert answer.status_code == 200
        # Text in a column of numbers is wrong, not unknown.
        event = {"item": item_ids[2], "context": {"price": "3"}}
        error = server.refused(server.client.post(EVENTS, json={"events": [event]}), 422, "invalid")
        assert error["field"] == "events[0].context.price" and "is a number in" in error["message"]


@pytest.mark.parametrize(
    "more, field, words",
    [
        ({"times": [1_700_000_000]}, "times", "1 entries: the history has 2 events"),
        ({"times": [1_700_000_000, 17]}, "times[1]", "times[1] is 17"),
        ({"times": [1_700_000_001, 1_700_000_000]}, "times[1]", "oldest first"),
        ({"times": [1_700_000_000, None]}, "times[1]", "a timestamp is a number"),
        ({"times": [1_700_000_000, "x"]}, "times[1]", "a timestamp is a number"),
        ({"kinds": []}, "kinds", "0 entries: the history has 2 events"),
        ({"kinds": ["buy"] * 3}, "kinds", "3 entries: the history has 2 events"),
        ({"kinds": ["buy", 5]}, "kinds[1]", "a kind is text"),
        ({"contexts": [{}]}, "contexts", "1 entries: the history has 2 events"),
        ({"contexts": [None, {"shop": []}]}, "contexts[1].shop", "text, a number or null"),
        ({"contexts": [None, 5]}, "contexts[1]", "dict"),
        ({"kind": 5}, "kind", "a kind is text"),
    ],
)
@pytest.mark.parametrize("path", [RECOMMEND, "/v1/explain"])
def test_what_is_told_of_a_history_is_checked(server, item_ids, path, more, field, words):
    """Also for a model that sees nothing of it."""
    body = {"history": item_ids[:2]} | ({"item_id": item_ids[5]} if "explain" in path else {})
    times = {"times": [1_700_000_000, 1_700_000_000]}
    fitting = times | {"kinds": ["buy", None], "contexts": [None, {"shop": "web"}], "kind": "buy"}
    answers = [server.post(path, body), server.post(path, body | fitting)]
    assert answers[0] == answers[1]
    error = server.client.post(path, json=body | more).json()["error"]
    assert error["field"] == field and words in error["message"]
    body = {"user_id": "anna"} | ({"item_id": item_ids[5]} if "explain" in path else {})
    error = server.refused(server.client.post(path, json=body | times), 422, "invalid")
    assert error["field"] == "times" and "belongs to history" in error["message"]


def test_a_wanted_kind_must_be_one_that_the_model_knows(server, item_ids):
    history = {"history": item_ids[:3]}
    # A model without kinds is told nothing, as one without times of the moment.
    assert server.recommend(**history, kind="gift") == server.recommend(**history)
    ready = server.client.get("/readyz").json()
    assert (ready["kinds"], ready["asks_kind"]) == ([], False)
    teach(server, "asked_kinds")
    ready = server.client.get("/readyz").json()
    assert (ready["kinds"], ready["asks_kind"]) == (["click", "buy"], True)
    for path, more in ((RECOMMEND, {}), ("/v1/explain", {"item_id": item_ids[5]})):
        answer = server.client.post(path, json=history | more | {"kind": "gift"})
        error = server.refused(answer, 422, "unknown_kind")
        assert (error["field"], error["value"]) == ("kind", "gift")
        assert error["message"] == "kind is 'gift': known are 'click', 'buy'"


def test_what_is_stored_is_read_as_the_model_knows_it():
    """Stored values may be of a kind, a column or a type that a later model does not know."""
    known = KnownFields(FIELDS, None, ("items", "kinds", "context", "users"))
    contexts = [None, {"shop": "app", "price": 2}, {"shop": "fax", "price": "2", "till": 1}]
    found = known.columns(3, "anna", ["buy", None, "gift"], contexts)
    assert found["kinds"].tolist() == [2, 0, 0] and found["users"].tolist() == [-1, -1, -1]
    assert str(found["context"].tolist()) == "[[nan, nan], [2.0, 2.0], [0.0, nan]]"
    empty = known.columns(1, None, None, None)
    assert empty["kinds"].tolist() == [0] and str(empty["context"].tolist()) == "[[nan, nan]]"
    assert (
        KnownFields(EventFields(), None, ("items",)).columns(3, "anna", ["buy"] * 3, contexts) == {}
    )


def test_events_for_a_request():
    own = {"shop": "web"}
    events = [7, {"item": 8, "kind": "buy"}, {"item": 9, "context": {"price": math.nan}}]
    assert as_events(events, "click", own) == [
        {"item": 7, "kind": "click", "context": own},
        {"item": 8, "kind": "buy", "context": own},
        {"item": 9, "kind": "click", "context": {"price": None}},
    ]
    for wrong, words in (
        ({"kind": 5}, r"events\[0\].kind is 5: a kind is text"),
        ({"context": [5]}, r"events\[0\].context is \[5\]: a context has values by name"),
        ({"context": {5: 5}}, r"events\[0\].context has the name 5"),
        ({"context": {"a": math.inf}}, r"events\[0\].context\['a'\] is inf"),
        ({"context": {"a": [1]}}, r"events\[0\].context\['a'\] is \[1\]"),
    ):
        with pytest.raises(DataError, match=words):
            as_events([{"item": 1, **wrong}])


def test_the_client_says_kinds_and_contexts(run, item_ids, tmp_path):
    with Process(run, tmp_path / "e.sqlite") as server, Client(server.url) as client:
        client.append("anna", item_ids[:2], kind="click", context={"shop": "web"})
        client.append("anna", [{"item": item_ids[2], "kind": "buy"}])
        told = [(one["kind"], one.get("context")) for one in client.user("anna")["events"]]
        assert told == [("click", {"shop": "web"})] * 2 + [("buy", None)]
        assert client.recommend("anna", 3, kind="buy") == client.recommend("anna", 3)
        assert client.explain("anna", item_ids[4], kind="buy", at=1_700_000_000)
        more = {"times": [1_700_000_000] * 2, "kinds": ["a", None], "contexts": [None, {"b": 1}]}
        plain = client.recommend_history(item_ids[:2], 3)
        assert client.recommend_history(item_ids[:2], 3, kind="buy", **more) == plain
        assert client.explain_history(item_ids[:2], item_ids[4], **more)["length"] == 2
        for wrong in ({"times": 5}, {"kinds": "ab"}, {"kinds": [5]}, {"contexts": [5]}):
            with pytest.raises(DataError, match=next(iter(wrong))):
                client.recommend_history(item_ids[:1], **wrong)
