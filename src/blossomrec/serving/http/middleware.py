"""What every request passes before it is looked at: host, token, size, number of requests."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from blossomrec.config import ServingConfig
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import (
    SAFE_HEADERS,
    Refusal,
    fault,
    plain,
    shown,
    unavailable,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Everything else is for whoever has the token; these tell nothing of users and events.
PROTECTED = ("/v1/", "/metrics")

# Asked by what would start the server again if it gave no answer.
PROBES = ("/healthz", "/readyz")
SAFE = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]


class RequestMiddleware:
    """ASGI middleware: refuses early, bounds what a request can cost, answers faults, measures.

    Every answer bears :data:`SAFE_HEADERS`; HEAD is GET without the body.
    Without a token only this machine is served, and only under its own names: otherwise any page
    open in a browser could have its own name point here and read along.

    Args:
        token: that requests must bear; None for none.
    """

    def __init__(
        self, app: Application, config: ServingConfig, metrics: Metrics, token: str | None
    ):
        self._app, self._config, self._metrics = app, config, metrics
        self._token = None if token is None else token.encode()
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, asked = time.perf_counter(), _method(scope)
        answer = _Answer(send, headless=asked == "HEAD")
        if asked == "HEAD":
            scope = {**scope, "method": "GET"}
        self._open += 1
        self._metrics.open.set(self._open)
        try:
            await self._answered(scope, receive, answer)
        finally:
            self._open -= 1
            self._metrics.open.set(self._open)
            route = _route(scope)
            self._metrics.requests.labels(asked, route, str(answer.status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _answered(self, scope: Scope, receive: Receive, send: _Answer) -> None:
        """Whatever happens inside, there is an answer, which tells nothing of the inside."""
        try:
            await self._checked(scope, receive, send)
        except asyncio.CancelledError:
            message = "the server is stopping; what was asked for may still be carried out"
            await send.refuse(unavailable("timeout", message))
        except Exception as error:
            await send.refuse(fault(error, f"{scope['method']} {_route(scope)}"))

    async def _checked(self, scope: Scope, receive: Receive, send: _Answer) -> None:
        try:
            headers = {name: value for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            if scope["method"] == "POST":
                _check_type(headers.get(b"content-type", b""))
            body = await self._body(receive, headers)
        except Refusal as refusal:
            await send.refuse(refusal)
            return
        except asyncio.CancelledError:
            # The server ends, and the time for what has begun is over.
            await send.refuse(unavailable("stopping", "the server is stopping"))
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._open > self._config.in_flight and path not in PROBES:
            raise unavailable("overloaded", f"{self._config.in_flight} requests are open")
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in LOOPBACK:
                message = f"without a token this server answers under {', '.join(sorted(LOOPBACK))}"
                raise Refusal(421, "wrong_host", message, field="Host", value=host)
        elif path.startswith(PROTECTED):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # Both are always compared, in a time that does not tell where they differ.
            if not hmac.compare_digest(given, self._token) or scheme.lower() != b"bearer":
                raise Refusal(
                    401,
                    "unauthorized",
                    "the header Authorization: Bearer TOKEN is missing or wrong",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._config.max_body:
            raise self._too_large(int(announced))
        try:
            return await asyncio.wait_for(self._received(receive), self._config.timeout)
        except TimeoutError as error:
            message = f"the body did not arrive within {self._config.timeout:g} s"
            raise Refusal(408, "slow_body", message, headers={"Connection": "close"}) from error

    async def _received(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "disconnected", "the connection was closed")
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._config.max_body:
                raise self._too_large(size)
        return b"".join(parts)

    def _too_large(self, size: int) -> Refusal:
        return Refusal(
            413,
            "body_too_large",
            f"the body has {size} bytes or more: at most {self._config.max_body} are taken",
            field="body",
            value=plain(size),
            headers={"Connection": "close"},
        )


def _check_type(found: bytes) -> None:
    # Of other types a page of another origin could send bodies without being asked first.
    if found.partition(b";")[0].strip().lower() != b"application/json":
        value = found.decode("latin-1")
        message = f"Content-Type is {shown(value)}: application/json is needed"
        raise Refusal(415, "wrong_type", message, field="Content-Type", value=value)


class _Answer:
    """Sends an answer with the headers that every answer has.

    Args:
        headless: send no body.

    Attributes:
        status: that was sent; until then that of a fault.
    """

    def __init__(self, send: Send, *, headless: bool):
        self.status, self._send, self._headless, self._begun = 500, send, headless, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            headers = list(message.get("headers", []))
            there = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SAFE if name not in there]
            message = {**message, "headers": headers}
        elif self._headless:
            message = {**message, "body": b""}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal.

        Raises:
            RuntimeError: another answer has begun, and can only be broken off.
        """
        if self._begun:
            raise RuntimeError("the answer was broken off") from refusal
        body, headers = refusal.sent()
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """The path as it is declared, without the ids that stand in it."""
    return getattr(scope.get("route"), "path", "none")


def _method(scope: Scope) -> str:
    # Anything can stand there, and each would be a series of its own.
    known = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"
