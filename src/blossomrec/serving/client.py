"""A client of the server, made of the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import quote, urlsplit

from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.serving.given import (
    ItemId,
    as_choice,
    as_context,
    as_events,
    as_id,
    as_ids,
    as_kind,
    as_listed,
    as_rules,
    as_time,
    as_whole,
    check_token,
)

# What a server says that has done nothing of what it was asked for.
NOTHING_DONE = ("overloaded", "stopping", "too_many_connections")
# Statuses after which a request may have been carried out: of the server, or of a proxy before it.
UNAVAILABLE = (502, 503, 504)
# Ids in a warning.
MOST_SHOWN = 5
# The server closes a connection that was idle; the request then goes over a new one.
BROKEN = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class ServerError(BlossomRecError):
    """The server refused a request, or could not be reached.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: for programs, such as "unknown_item".
        field, value: what in the request is wrong; None for nothing in particular.
        place: number of the first wrong character of an expression, from 1; None for no character.
        id: under which the log of the server says more; None where it does not.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        value: Any = None,
        id: str | None = None,
        place: int | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.field, self.value = status, code, field, value
        self.id, self.place = id, place


class Client:
    """Talks to one server over one connection that is kept; one thread uses it.

    A request that is refused because the server is busy, or away behind a proxy, is sent again,
    after the time that the answer asks for. Events are sent again only where each has a key:
    without, a lost answer would leave open whether they are stored.

    Ids are text or whole numbers; lists of them may be lists, tuples, arrays of NumPy, columns of
    pandas or Polars, or anything else that gives one after the other. What is none of these, such
    as text where a list belongs, is a DataError, and nothing is sent.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        token: that the server asks for.
        timeout: seconds for one answer.
        retries: how often a request is sent again.

    Attributes:
        model: version of the model that made the last answer that names one; None before.

    Raises:
        ConfigError: the URL is none, or the token cannot be sent.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
    ):
        scheme, host, port, self._base = _parts(url)
        kind = http.client.HTTPConnection if scheme == "http" else http.client.HTTPSConnection
        self._connection = kind(host, port, timeout=timeout)
        self._retries, self._wait = retries, 1.0
        self.model: str | None = None
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            check_token(token, "token")
            self._headers["Authorization"] = f"Bearer {token}"

    def append(
        self,
        user: ItemId,
        events: Iterable[ItemId | Mapping[str, Any]],
        *,
        kind: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Append events, oldest first.

        Items among ``unknown_items`` of the answer are not known to the model yet: their events are
        stored, and count as soon as a model knows them.

        Args:
            events: item ids, or mappings with item, timestamp, key, kind and context.
            kind, context: of the events that do not say theirs: what the user did, such as "buy",
                and texts and numbers by the name of the column.
        """
        listed = as_events(events, kind, context)
        safe = all(event.get("key") is not None for event in listed)
        user = as_id(user, "user")
        return self._ask("POST", f"{_path(user)}/events", {"events": listed}, again=safe, user=user)

    def recommend(
        self,
        user: ItemId,
        k: int = 10,
        *,
        filter_viewed: bool | None = None,
        exclude: Iterable[ItemId] = (),
        items: Iterable[ItemId] | None = None,
        at: float | None = None,
        kind: str | None = None,
        **rules: Any,
    ) -> list[dict[str, Any]]:
        """The best next items of a user: item, score, rank.

        Args:
            filter_viewed: leave out the items of the history; None as the model is evaluated.
            exclude: other items to leave out.
            items: the only items to choose from; None is the whole catalogue.
            at: the moment for which is recommended, a time since 1970 in any unit, to a model that
                sees it; None is now.
            kind: of the event that is wanted next, such as "buy", to a model that sees it; None is
                any.
            rules: ``filter``, ``boost``, ``max_per``, ``diversity``, ``exclude_seen_days`` and
                ``fallback``, as of :class:`blossomrec.Rules`; what is None, or not given, is as the
                server was started.
        """
        user = as_id(user, "user")
        body = {"user_id": user} | _asked(at, kind) | as_rules(rules)
        body |= _choice(k, filter_viewed, exclude, items)
        return self._ask("POST", "/v1/recommend", body, user=user)["items"]

    def recommend_history(
        self,
        history: Iterable[ItemId],
        k: int = 10,
        *,
        filter_viewed: bool | None = None,
        exclude: Iterable[ItemId] = (),
        items: Iterable[ItemId] | None = None,
        at: float | None = None,
        kind: str | None = None,
        times: Iterable[float] | None = None,
        kinds: Iterable[str | None] | None = None,
        contexts: Iterable[Mapping[str, Any] | None] | None = None,
        **rules: Any,
    ) -> list[dict[str, Any]]:
        """The best next items after any list of items, oldest first; see :meth:`recommend`.

        Items that the model does not know are skipped, with a warning.

        Args:
            times, kinds, contexts: of the items, for a model that sees them; None where they are
                not known. The times are also those that ``exclude_seen_days`` counts from.
        """
        body = _history(history, times, kinds, contexts) | as_rules(rules)
        body |= _asked(at, kind) | _choice(k, filter_viewed, exclude, items)
        answer = self._ask("POST", "/v1/recommend", body)
        # A server of an earlier version refuses them.
        if skipped := answer.get("unknown_items"):
            shown = ", ".join(map(repr, skipped[:MOST_SHOWN]))
            shown += ", ..." if len(skipped) > MOST_SHOWN else ""
            message = f"items of the history that the model does not know are skipped: {shown}"
            warnings.warn(message, stacklevel=2)
        return answer["items"]

    def similar(self, items: Iterable[ItemId], k: int = 10) -> list[dict[str, Any]]:
        """For each item: item, and similar with item, score and rank."""
        body = {"items": as_ids(items, "items", ordered=False), "k": as_whole(k, "k")}
        return self._ask("POST", "/v1/similar", body)["items"]

    def explain(
        self,
        user: ItemId,
        item: ItemId,
        k: int = 10,
        *,
        at: float | None = None,
        kind: str | None = None,
    ) -> dict[str, Any]:
        """Why an item has its score for a user: what each past event brings to it."""
        user = as_id(user, "user")
        body = {"user_id": user, "item_id": as_id(item, "item"), "k": as_whole(k, "k")}
        return self._ask("POST", "/v1/explain", body | _asked(at, kind), user=user)

    def explain_history(
        self,
        history: Iterable[ItemId],
        item: ItemId,
        k: int = 10,
        *,
        at: float | None = None,
        kind: str | None = None,
        times: Iterable[float] | None = None,
        kinds: Iterable[str | None] | None = None,
        contexts: Iterable[Mapping[str, Any] | None] | None = None,
    ) -> dict[str, Any]:
        """Why an item has its score after any list of items; see :meth:`recommend_history`."""
        body = _history(history, times, kinds, contexts) | _asked(at, kind)
        body |= {"item_id": as_id(item, "item"), "k": as_whole(k, "k")}
        return self._ask("POST", "/v1/explain", body)

    def user(self, user: ItemId, last: int = 20) -> dict[str, Any]:
        """Length and last events of a user."""
        user = as_id(user, "user")
        return self._ask("GET", f"{_path(user)}?last={as_whole(last, 'last')}", user=user)

    def users(self) -> Iterator[dict[str, Any]]:
        """All users, by the time of their last event: user_id, length, timestamp."""
        path = "/v1/users?limit=100"
        answer = self._ask("GET", path)
        yield from answer["users"]
        while answer["next"] is not None:
            answer = self._ask("GET", f"{path}&before={quote(answer['next'], safe='')}")
            yield from answer["users"]

    def delete(self, user: ItemId) -> int:
        """Delete a user; gives the number of events, 0 for one who is not there."""
        user = as_id(user, "user")
        try:
            return self._ask("DELETE", _path(user), user=user)["events"]
        except ServerError as error:
            if error.code != "unknown_user":
                raise
            return 0

    def switch(self, off: Iterable[ItemId] = (), on: Iterable[ItemId] = ()) -> list[ItemId]:
        """Switch items off or on again; gives all that are off.

        Those that the model does not know yet are off for one that does.
        """
        names = {"off": off, "on": on}
        body = {name: as_ids(items, name, ordered=False) for name, items in names.items()}
        return self._ask("POST", "/v1/items", body)["off"]

    def ready(self) -> dict[str, Any]:
        """Which model answers."""
        return self._ask("GET", "/readyz")

    def versions(self) -> dict[str, Any]:
        """Versions of the model that the server has used, and reloads that it refused."""
        return self._ask("GET", "/v1/versions")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        again: bool = True,
        user: ItemId | None = None,
    ) -> Any:
        # Of several servers, a proxy can so choose the one that has the user's history in memory.
        self._headers.pop("X-User", None)
        if user is not None:
            self._headers["X-User"] = quote(str(user), safe="")
        for left in reversed(range(self._retries + 1)):
            try:
                answer = self._once(method, path, body, again=again)
                self.model = answer.get("model", self.model)
                return answer
            except ServerError as error:
                # A busy server has done nothing; one that timed out may have.
                repeat = error.code in NOTHING_DONE or (again and error.status in UNAVAILABLE)
                if not repeat or not left:
                    raise
                time.sleep(self._wait)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, body: Any, *, again: bool) -> Any:
        content = None if body is None else json.dumps(body)
        kept = self._connection.sock is not None
        try:
            try:
                answer = self._send(method, path, content)
            except BROKEN:
                self._connection.close()
                if not (kept and again):
                    raise
                answer = self._send(method, path, content)
            status, text = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServerError(0, "no_answer", f"no answer from the server: {error!r}") from error
        self._wait = _seconds(answer.getheader("Retry-After"))
        return _content(status, text)

    def _send(self, method: str, path: str, content: str | None) -> http.client.HTTPResponse:
        if self._connection.sock is None:
            self._connection.connect()
            opened = cast(socket.socket, self._connection.sock)
            # Head and body are two packets: the second must not wait for the first's receipt.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.request(method, self._base + path, content, self._headers)
        return self._connection.getresponse()


def _parts(url: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"url is {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url is {url!r}: http://HOST:PORT or https://HOST is needed")
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def _history(
    history: Iterable[ItemId],
    times: Iterable[float] | None,
    kinds: Iterable[str | None] | None,
    contexts: Iterable[Mapping[str, Any] | None] | None,
) -> dict[str, Any]:
    """What the body of a request says about the events after which is recommended."""
    body: dict[str, Any] = {"history": as_ids(history, "history")}
    given = {"times": (times, as_time), "kinds": (kinds, as_kind)}
    for name, (values, read) in (given | {"contexts": (contexts, as_context)}).items():
        if values is not None:
            body[name] = as_listed(values, name, read)
    return body


def _asked(at: float | None, kind: str | None) -> dict[str, Any]:
    """What the body of a request says about the event that is wanted."""
    body = {"at": at, "kind": as_kind(kind, "kind")}
    return {name: value for name, value in body.items() if value is not None}


def _choice(
    k: int,
    filter_viewed: bool | None,
    exclude: Iterable[ItemId],
    items: Iterable[ItemId] | None,
) -> dict[str, Any]:
    """What the body of a request says about the items that are wanted."""
    body = {
        "k": as_whole(k, "k"),
        "filter_viewed": as_choice(filter_viewed, "filter_viewed"),
        "exclude": as_ids(exclude, "exclude", ordered=False),
        "items": None if items is None else as_ids(items, "items", ordered=False),
    }
    return {name: value for name, value in body.items() if value is not None}


def _path(user: ItemId) -> str:
    return f"/v1/users/{quote(str(user), safe='')}"


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdecimal() else 1.0


def _content(status: int, text: bytes) -> Any:
    try:
        content = json.loads(text)
        if status < 300:
            return content
        error = content["error"]
        raise ServerError(
            status,
            error["code"],
            error["message"],
            error.get("field"),
            error.get("value"),
            error.get("id"),
            error.get("place"),
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ServerError):
            raise
        shown = text[:80].decode(errors="replace")
        raise ServerError(status, "http", f"HTTP status {status}: {shown}") from error
