"""The page at the server's root and the reference: made of this package, with strict headers."""

from __future__ import annotations

from functools import cache, partial
from importlib.resources import files

from fastapi import FastAPI, Response

from blossomrec.serving.reference import reference

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
