"""What every answer has: methods, headers, and a reference that describes it."""

import re

import pytest

RECOMMEND = "/v1/recommend"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/page.css",
        "/docs",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v1/users",
        "/v1/users/anna",
        "/none",
    ],
)
def test_head_is_get_without_the_body(server, path):
    """Some of those who watch ask for the status alone."""
    wanted, answer = server.client.get(path), server.client.head(path)
    assert wanted.content and not answer.content
    assert answer.status_code == wanted.status_code
    changing = "content-length" if path == "/metrics" else ""
    for name, value in wanted.headers.items():
        assert answer.headers[name] == value or name == changing


def test_what_was_asked_by_head_is_measured_as_that(server):
    server.client.head("/healthz")
    text = server.client.get("/metrics").text
    assert 'blossomrec_requests_total{method="HEAD",route="/healthz",status="200"} 1.0' in text


def test_every_answer_says_what_browsers_may_do_with_it(server, item_ids, monkeypatch):
    async def broken(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr(server.service, "similar", broken)
    asked = [
        ("GET", "/", {}, 200),
        ("GET", "/page.css", {}, 200),
        ("GET", "/docs", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/readyz", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("POST", RECOMMEND, {"json": {"history": item_ids[:1]}}, 200),
        ("POST", RECOMMEND, {"json": {}}, 422),
        ("POST", RECOMMEND, {"content": b"{}", "headers": {"content-type": "text/html"}}, 415),
        ("POST", "/v1/similar", {"json": {"items": item_ids[:1]}}, 500),
        ("PUT", "/readyz", {}, 405),
        ("GET", "/none", {}, 404),
        ("GET", "/readyz", {"headers": {"host": "evil.example"}}, 421),
    ]
    for method, path, options, status in asked:
        answer = server.client.request(method, path, **options)
        assert answer.status_code == status
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        (policy,) = answer.headers.get_list("content-security-policy")
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


def test_the_reference_is_made_of_this_package_alone(server):
    answer = server.client.get("/docs")
    text = answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    schema = server.client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in text
    for name, one in schema["components"]["schemas"].items():
        assert f'id="{name}"' in text
        assert all(f"<code>{field}</code>" in text for field in one["properties"])
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', text)
    # Relative, so that they hold behind any prefix; nothing comes from elsewhere, nothing runs.
    loaded = {one for one in addresses if not one.startswith("#")}
    assert loaded == {"data:,", "docs.css", "openapi.json"}
    assert "<script" not in text and "<style" not in text and "style=" not in text
    names = {one[1:] for one in addresses if one.startswith("#")}
    assert names <= set(schema["components"]["schemas"])
    assert server.client.get("/docs.css").headers["content-type"] == "text/css; charset=utf-8"
    for path in ("/redoc", "/docs/oauth2-redirect", "/docs/", "/readyz/"):
        server.refused(server.client.get(path), 404, "not_found")
