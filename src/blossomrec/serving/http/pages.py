"""The page at the root and the reference at /docs, both without a script from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, partial
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing from elsewhere, nothing inline; no other page may show this one inside itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A server of a new version may have another page.
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its files beside it. They hold nothing of users or items."""
    for file in files("blossomrec.serving").joinpath("page").iterdir():
        kind = TYPES.get(file.name[file.name.rfind(".") :])
        if kind is None:
            continue
        path = "/" if file.name == "index.html" else f"/{file.name}"
        send = partial(
            Response, file.read_bytes(), headers=HEADERS, media_type=f"{kind}; charset=utf-8"
        )
        app.add_api_route(path, _route(send), include_in_schema=False, response_class=Response)


def add_reference(app: FastAPI) -> None:
    """Serve at /docs what requests there are, as /openapi.json says it."""

    @cache
    def made() -> str:
        return reference(app.openapi())

    async def docs() -> Response:
        return Response(made(), headers=HEADERS, media_type="text/html; charset=utf-8")

    app.add_api_route("/docs", docs, include_in_schema=False, response_class=Response)


def _route(send: partial[Response]):
    async def page() -> Response:
        return send()

    return page


FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Requests - {title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs.css">
</head>
<body>
<header>
<p>{title} {version}</p>
<h1>Requests</h1>
<p>{description} The same for programs: <a href="openapi.json">openapi.json</a>.</p>
</header>
<main>
{requests}
<h2>What they take and give</h2>
{objects}
</main>
</body>
</html>
"""


def reference(schema: Mapping[str, Any]) -> str:
    """An HTML page with every operation of an OpenAPI description, and every object in them.

    Its addresses are relative, so that it can stand behind any prefix.
    """
    info = {name: escape(schema["info"][name]) for name in ("title", "version", "description")}
    requests = [
        _operation(method, path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    objects = [_object(name, one) for name, one in schema["components"]["schemas"].items()]
    return FRAME.format(**info, requests="\n".join(requests), objects="\n".join(objects))


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<section>\n<h2><code>{method.upper()} {escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('description', operation['summary']))}</p>")
    parameters = [
        (one["name"], one["schema"], one.get("required", False), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    if parameters:
        parts.append(_table("Parameter", parameters))
    if body := operation.get("requestBody"):
        parts.append(f"<p>Body: {_content(body)}</p>")
    good, bad = operation["responses"]["200"], operation["responses"].items()
    refusals = [
        f"{status} {escape(answer['description'])}"
        for status, answer in sorted(bad)
        if status != "200"
    ]
    parts.append(f"<p>Answer: {_content(good) or 'text'}</p>")
    parts.append(f'<p class="note">Refusals: {"; ".join(refusals)}.</p>')
    return "\n".join([*parts, "</section>"])


def _content(holder: Mapping[str, Any]) -> str:
    schemas = [one.get("schema", {}) for one in holder.get("content", {}).values()]
    return ", ".join(map(_kind, filter(None, schemas)))


def _object(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = [
        (field, one, field in required, one.get("description", ""))
        for field, one in schema.get("properties", {}).items()
    ]
    head = f'<section id="{escape(name)}">\n<h3>{escape(name)}</h3>'
    about = f"<p>{escape(schema.get('description', ''))}</p>"
    return "\n".join([head, about, _table("Field", fields), "</section>"])


def _table(first: str, rows: Iterable[tuple[str, Mapping[str, Any], bool, str]]) -> str:
    lines = [
        f"<tr><td><code>{escape(name)}</code></td><td>{_kind(schema)}</td>"
        f"<td>{'needed' if needed else _default(schema)}</td><td>{escape(about)}</td></tr>"
        for name, schema, needed, about in rows
    ]
    head = f"<tr><th>{first}</th><th>Type</th><th>Without it</th><th>Meaning</th></tr>"
    return "\n".join(["<table>", head, *lines, "</table>"])


def _default(schema: Mapping[str, Any]) -> str:
    return escape(str(schema["default"])) if schema.get("default") is not None else ""


def _kind(schema: Mapping[str, Any]) -> str:
    """The type that a schema describes, with links to the objects in it."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(escape, schema["enum"]))
    if "prefixItems" in schema:
        return f"[{', '.join(map(_kind, schema['prefixItems']))}]"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return escape(str(schema.get("type", "")))
