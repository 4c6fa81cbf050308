"""Requests that are taken, and those that are not: which status, which field, which value."""

import asyncio
import json
import sqlite3
from urllib.parse import quote

import pytest
from serving_runs import Server

EVENTS = "/v1/users/anna/events"
RECOMMEND = "/v1/recommend"


def test_the_life_of_a_user(server, item_ids):
    events = [{"item": item_ids[0], "timestamp": 5, "key": "a"}, {"item": str(item_ids[1])}]
    answer = server.append("anna", events)
    counts = {"stored": 2, "repeated": 0, "length": 2}
    model = server.service.version.id
    assert answer == {"user_id": "anna", **counts, "unknown_items": [], "model": model}
    assert server.append("anna", events[:1])["repeated"] == 1
    server.append("anna", item_ids[2:30])
    user = server.client.get("/v1/users/anna?last=3").json()
    assert (user["user_id"], user["length"]) == ("anna", 30)
    assert [event["item"] for event in user["events"]] == item_ids[27:30]
    first = server.client.get("/v1/users/anna?last=1000").json()["events"][:2]
    assert first[0] == {"item": item_ids[0], "timestamp": 5, "known": True}
    # Ids are those of the catalogue, however they were sent.
    assert first[1]["item"] == item_ids[1] and first[1]["timestamp"] > 1_700_000_000
    assert len(server.client.get("/v1/users/anna").json()["events"]) == 20
    assert len(server.recommend(user_id="anna")) == 10
    assert server.client.delete("/v1/users/anna").json() == {"user_id": "anna", "events": 30}
    for answer in (
        server.client.get("/v1/users/anna"),
        server.client.delete("/v1/users/anna"),
        server.client.post(RECOMMEND, json={"user_id": "anna"}),
    ):
        error = server.refused(answer, 404, "unknown_user")
        assert error["value"] == "anna"


def test_nothing_of_a_deleted_user_stays_in_the_files(server, item_ids):
    for user in ("anna-the-first", "ben"):
        events = [{"item": item, "key": f"{user}-{item}"} for item in item_ids]
        server.append(user, events)
        server.recommend(user_id=user, filter_viewed=False)
    assert server.client.delete("/v1/users/anna-the-first").status_code == 200
    files = list(server.store_path.parent.glob("events.sqlite*"))
    content = b"".join(path.read_bytes() for path in files)
    assert len(files) == 3
    assert b"anna-the-first" not in content and b"ben-" in content


def test_users_are_listed_in_parts(server, item_ids):
    assert server.client.get("/v1/users").json() == {"users": [], "next": None}
    for number in (2, 0, 4, 1, 3):
        events = [{"item": item, "timestamp": 100 + number} for item in item_ids[: number + 1]]
        server.client.post(f"/v1/users/u{number}/events", json={"events": events})
    first = server.client.get("/v1/users?limit=3").json()
    assert first["users"] == [
        {"user_id": f"u{number}", "length": number + 1, "timestamp": 100 + number}
        for number in (4, 3, 2)
    ]
    second = server.client.get("/v1/users", params={"limit": 3, "before": first["next"]}).json()
    assert [one["user_id"] for one in second["users"]] == ["u1", "u0"]
    assert second["next"] is None
    for query in ("limit=0", "limit=101", "limit=x", "before=-1", "before=x:1", "before=a"):
        answer = server.client.get(f"/v1/users?{query}")
        assert server.refused(answer, 422, "invalid")["field"] == query.partition("=")[0]


@pytest.mark.parametrize("user", ["a/b", "a/events", "ä ö", "?#&", "12", "'; DROP", "é" * 256])
def test_users_of_any_name(server, item_ids, user):
    path = f"/v1/users/{quote(user, safe='')}"
    assert server.post(f"{path}/events", {"events": [{"item": item_ids[0]}]})["user_id"] == user
    assert server.client.get(path).json()["length"] == 1
    assert len(server.recommend(user_id=user, k=3)) == 3
    assert server.client.delete(path).json() == {"user_id": user, "events": 1}


def test_a_number_and_its_digits_are_the_same_user(server, item_ids):
    server.append(12, item_ids[:3])
    assert server.recommend(user_id=12) == server.recommend(user_id="12")


@pytest.mark.parametrize(
    "events, status, code, field",
    [
        ([{"item": "a\nb"}], 422, "invalid", "events[1].item"),
        ([{"item": 1.5}], 422, "invalid", "events[1].item"),
        ([{"item": True}], 422, "invalid", "events[1].item"),
        ([{"item": None}], 422, "invalid", "events[1].item"),
        ([{"item": ""}], 422, "invalid", "events[1].item"),
        ([{"item": 2**70}], 422, "invalid", "events[1].item"),
        ([{"item": "\ud800"}], 422, "invalid", "events[1].item"),
        ([{}], 422, "invalid", "events[1].item"),
        ([7], 422, "invalid", "events[1]"),
        ([{"item": 50_003, "timestamp": 3}], 409, "out_of_order", "events[1].timestamp"),
        ([{"item": 50_003, "timestamp": "now"}], 422, "invalid", "events[1].timestamp"),
        ([{"item": 50_003, "timestamp": True}], 422, "invalid", "events[1].timestamp"),
        ([{"item": 50_003, "timestamp": 10**30}], 422, "invalid", "events[1].timestamp"),
        ([{"item": 50_003, "key": ""}], 422, "invalid", "events[1].key"),
        ([{"item": 50_003, "key": 5}], 422, "invalid", "events[1].key"),
        ([{"item": 50_003, "key": "\ud800"}], 422, "invalid", "events[1].key"),
        ([{"item": 50_003, "key": "first"}], 409, "key_reused", "events[1].key"),
        ([{"item": 50_003, "rating": 5}], 422, "invalid", "events[1].rating"),
        ([{"item": 50_003}] * 1_000, 422, "too_many", "events"),
    ],
)
def test_of_a_bad_batch_nothing_is_stored(server, item_ids, events, status, code, field):
    good = {"item": item_ids[3], "timestamp": 100, "key": "first"}
    body = json.dumps({"events": [good, *events]})
    answer = server.client.post(EVENTS, content=body, headers={"content-type": "application/json"})
    error = server.refused(answer, status, code)
    assert error["field"] == field
    assert field in error["message"]
    server.refused(server.client.get("/v1/users/anna"), 404, "unknown_user")


@pytest.mark.parametrize(
    "body, field, words",
    [
        ({}, "user_id", "either user_id or history"),
        ({"user_id": "a", "history": [50_003]}, "user_id", "either user_id or history"),
        ({"user_id": ["a"]}, "user_id", "a whole number or text"),
        ({"user_id": "a\nb"}, "user_id", "U+000A is in it"),
        ({"user_id": "a" * 257}, "user_id", "1 to 256 characters"),
        ({"history": []}, "history", "history is empty"),
        ({"history": "50003"}, "history", "list"),
        ({"history": ["none"]}, "history", "knows no item"),
        ({"history": [50_003] * 10_001}, "history", "10001 entries: at most 10000"),
        ({"history": [50_003], "k": 0}, "k", "greater than or equal to 1"),
        ({"history": [50_003], "k": 1_001}, "k", "k is 1001: it must be at most 1000"),
        ({"history": [50_003], "k": 2.5}, "k", "2.5"),
        ({"history": [50_003], "k": "10"}, "k", "'10'"),
        ({"history": [50_003], "k": 10**30}, "k", "at most 1000"),
        ({"history": [50_003], "items": []}, "items", "items is empty"),
        ({"history": [50_003], "items": [9]}, "items[0]", "does not know"),
        ({"history": [50_003], "exclude": 9}, "exclude", "9"),
        ({"history": [50_003], "filter_viewed": "no"}, "filter_viewed", "'no'"),
        ({"history": [50_003], "filter": True}, "filter", "True"),
    ],
)
def test_bad_requests_are_refused(server, body, field, words):
    error = server.refused(server.client.post(RECOMMEND, json=body), 422, error_code(words))
    assert error["field"] == field
    assert words in error["message"]


def error_code(words):
    if "does not know" in words:
        return "unknown_item"
    if "knows no" in words:
        return "no_known_item"
    return "too_many" if "at most" in words else "invalid"


@pytest.mark.parametrize(
    "body, field",
    [
        ({"items": []}, "items"),
        ({"items": [50_003] * 21}, "items"),
        ({"items": ["none"]}, "items[0]"),
        ({"items": [50_003], "k": 0}, "k"),
        ({"items": [50_003], "k": 2_000}, "k"),
        ({}, "items"),
    ],
)
def test_bad_requests_for_similar_items(server, body, field):
    answer = server.client.post("/v1/similar", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize(
    "content, status, code",
    [
        (b"", 422, "invalid"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"k": ' + b"1" * 5_000 + b"}", 400, "invalid_json"),
        (b"null", 422, "invalid"),
        (b"[]", 422, "invalid"),
        (b'"text"', 422, "invalid"),
        (b'{"user_id": "a", "k": NaN}', 422, "invalid"),
        (b'{"user_id": "a", "k": Infinity}', 422, "invalid"),
        (b'{"user_id": NaN}', 422, "invalid"),
    ],
)
def test_bodies_that_are_no_request(server, content, status, code):
    headers = {"content-type": "application/json"}
    server.refused(server.client.post(RECOMMEND, content=content, headers=headers), status, code)


def test_only_json_is_taken(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        answer = server.client.post(RECOMMEND, content=b"{}", headers={"content-type": kind})
        assert server.refused(answer, 415, "wrong_type")["field"] == "Content-Type"
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    server.refused(server.client.post(RECOMMEND, content=b"{}", headers=headers), 422, "invalid")


def test_other_paths_and_methods(server):
    assert server.refused(server.client.get("/nothing"), 404, "not_found")
    for method, path, allowed in (
        ("GET", RECOMMEND, "POST"),
        ("PUT", "/readyz", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("DELETE", "/openapi.json", "GET, HEAD"),
        ("PATCH", "/v1/users/anna", "DELETE, GET, HEAD"),
        ("PUT", "/v1/items", "GET, HEAD, POST"),
        ("OPTIONS", "/v1/users", "GET, HEAD"),
    ):
        answer = server.client.request(method, path, json={})
        server.refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed
    assert server.client.head(RECOMMEND).status_code == 405
    answer = server.client.get("/v1/users/anna?last=1001")
    assert server.refused(answer, 422, "invalid")["field"] == "last"
    answer = server.client.get("/v1/users/%FF")
    assert server.refused(answer, 422, "invalid")["field"] == "user_id"
    answer = server.client.get("/v1/users/")
    assert server.refused(answer, 422, "invalid")["field"] == "user_id"


def test_a_large_body_is_refused_before_it_is_read(run, tmp_path, one_thread):
    with Server(run, tmp_path / "events.sqlite", max_body=1_000) as server:
        headers = {"content-type": "application/json"}
        answer = server.client.post(RECOMMEND, content=b" " * 1_001, headers=headers)
        assert server.refused(answer, 413, "body_too_large")["value"] == 1_001

        def parts():
            for _ in range(100):
                yield b" " * 100

        answer = server.client.post(RECOMMEND, content=parts(), headers=headers)
        server.refused(answer, 413, "body_too_large")
        server.refused(
            server.client.post(RECOMMEND, content=b" " * 900, headers=headers), 400, "invalid_json"
        )


def test_a_body_that_does_not_arrive_is_given_up(run, tmp_path, one_thread):
    with Server(run, tmp_path / "events.sqlite", timeout=0.05) as server:
        sent = []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": RECOMMEND, "headers": headers}
        scope |= {"query_string": b"", "raw_path": RECOMMEND.encode()}
        asyncio.run(server.app(scope, receive, send))
        assert sent[0]["status"] == 408
        assert b"slow_body" in sent[1]["body"]


@pytest.mark.parametrize("arrived, code", [(False, b"stopping"), (True, b"timeout")])
def test_what_is_given_up_at_the_end_is_said(server, item_ids, monkeypatch, caplog, arrived, code):
    """Only what has not begun may be sent again without a thought."""

    async def work():
        sent, waiting = [], asyncio.Event()

        async def forever(*_, **__):
            waiting.set()
            await asyncio.sleep(60)

        async def receive():
            if not arrived:
                await forever()
            body = json.dumps({"history": item_ids[:1]}).encode()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        monkeypatch.setattr(server.service, "recommend", forever)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": RECOMMEND, "headers": headers}
        scope |= {"query_string": b"", "raw_path": RECOMMEND.encode()}
        task = asyncio.create_task(server.app(scope, receive, send))
        await waiting.wait()
        task.cancel()
        await task
        return sent

    start, body = asyncio.run(work())
    assert start["status"] == 503 and code in body["body"]
    assert not caplog.messages


def test_without_a_token_only_this_machine_is_answered(server):
    for host in ("localhost", "127.0.0.1:8000", "[::1]:80", "LOCALHOST:1", "[::1]"):
        assert server.client.get("/readyz", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "192.168.0.2", ""):
        answer = server.client.get("/readyz", headers={"host": host})
        assert server.refused(answer, 421, "wrong_host")["value"] == host


def test_a_token_is_needed_where_there_is_one(run, item_ids, tmp_path, one_thread):
    token = "a secret with many characters"
    with Server(run, tmp_path / "events.sqlite", token=token) as server:
        for given in (
            None,
            "Bearer",
            f"Bearer {token}x",
            f"Basic {token}",
            f"Bearer {token[:-1]}",
            token,
        ):
            headers = {} if given is None else {"Authorization": given}
            for path in ("/v1/users/anna", "/v1/users", "/metrics"):
                answer = server.client.get(path, headers=headers)
                server.refused(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert token not in answer.text
            body = {"events": [{"item": item_ids[0]}]}
            server.refused(
                server.client.post(EVENTS, json=body, headers=headers), 401, "unauthorized"
            )
        good = {"Authorization": f"bearer {token}", "host": "shop.example"}
        assert server.client.post(EVENTS, json=body, headers=good).status_code == 200
        assert server.client.get("/v1/users/anna", headers=good).json()["length"] == 1
        assert server.client.get("/metrics", headers=good).status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert server.client.get(path, headers={"host": "shop.example"}).status_code == 200


def test_a_fault_is_said_without_its_trace(server, item_ids, monkeypatch, caplog):
    async def broken(*_, **__):
        raise RuntimeError("secret place in the code")

    monkeypatch.setattr(server.service, "recommend", broken)
    monkeypatch.setattr(server.service, "profile", broken)
    answer = server.client.post(RECOMMEND, json={"history": item_ids[:1]})
    error = server.refused(answer, 500, "internal")
    assert "secret" not in answer.text
    assert f"[{error['id']}] a fault at POST /v1/recommend" in caplog.text
    assert "RuntimeError: secret place in the code" in caplog.text
    # The log tells what it was without telling of whom.
    other = server.refused(server.client.get("/v1/users/anna"), 500, "internal")["id"]
    assert other != error["id"] and "anna" not in caplog.text
    text = server.client.get("/metrics").text
    assert 'blossomrec_requests_total{method="POST",route="/v1/recommend",status="500"} 1.0' in text


def test_an_error_of_the_store_stays_in_the_log(server, item_ids, monkeypatch, caplog):
    def away(*_):
        raise sqlite3.OperationalError("Error 111 connecting to 10.0.0.5:6379.\nConnection refused")

    monkeypatch.setattr(server.service._reader._store, "profile", away)
    answer = server.client.get("/v1/users/anna")
    error = server.refused(answer, 503, "store_failed")
    assert set(error) == {"code", "message", "id"}
    assert not [word for word in ("111", "10.0.0.5", "6379") if word in error["message"]]
    (entry,) = (one for one in caplog.messages if error["id"] in one)
    assert "10.0.0.5:6379" in entry and "\n" not in entry


def test_a_key_that_is_used_again_tells_nothing_of_its_event(server, item_ids):
    server.append("anna", [{"item": item_ids[0], "timestamp": 1234567, "key": "order-17"}])
    events = [{"item": item_ids[1], "timestamp": 2345678, "key": "order-17"}]
    answer = server.client.post(EVENTS, json={"events": events})
    error = server.refused(answer, 409, "key_reused")
    assert (error["field"], error["value"]) == ("events[0].key", "order-17")
    assert str(item_ids[0]) not in answer.text and "1234567" not in answer.text


def test_what_is_measured(server, item_ids):
    server.append("anna", item_ids[:5])
    server.recommend(user_id="anna")
    server.recommend(user_id="anna")
    server.client.get("/v1/users/secret-user")
    server.client.request("BREW", "/nothing/at/all")
    text = server.client.get("/metrics").text
    for line in (
        "blossomrec_events_stored_total 5.0",
        "blossomrec_events_encoded_total 5.0",
        "blossomrec_cache_hits_total 1.0",
        "blossomrec_cache_misses_total 1.0",
        "blossomrec_cache_users 1.0",
        f"blossomrec_queue_limit {server.service.config.queue}.0",
        'blossomrec_requests_total{method="POST",route="/v1/recommend",status="200"} 2.0',
        'blossomrec_requests_total{method="other",route="none",status="404"} 1.0',
        f'blossomrec_model_info{{version="{server.service.version.id}"}} 1.0',
    ):
        assert line in text
    assert "secret-user" not in text and "anna" not in text
    kept = float(text.split("blossomrec_cache_bytes ")[-1].split()[0])
    assert kept == server.service.version.cache.nbytes > 1_000


def test_what_is_ready(server, tiny_log):
    ready = server.client.get("/readyz").json()
    version = server.service.version.id
    kinds = {"kinds": [], "asks_kind": False}
    known = {"model": version, "items": tiny_log.num_items, "max_len": 20}
    assert ready == {"ready": True, **known, **kinds, "columns": ["item_id"]}
    assert server.client.get("/healthz").json() == {"alive": True}
    assert "/v1/recommend" in server.client.get("/openapi.json").json()["paths"]
