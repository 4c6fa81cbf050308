"""The HTTP interface: a FastAPI application over a service."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Match

from blossomrec import __version__
from blossomrec.config import ServingConfig
from blossomrec.serving.engine.given_history import Given
from blossomrec.serving.engine.service import Service
from blossomrec.serving.http import schemas
from blossomrec.serving.http.middleware import RequestMiddleware
from blossomrec.serving.http.pages import add_page, add_reference
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, plain, shown
from blossomrec.serving.stores.store import Context, Event, ItemId
from blossomrec.serving.version.version import ModelVersion
from blossomrec.serving.watch.records import WITHIN, VersionRecord

DESCRIPTION = "Recommendations from the whole history of a user, which grows event by event."
MOST_SHOWN = 1_000
MOST_LISTED = 100
LONGEST_CURSOR = 1_024
# What any request may be answered with.
COMMON = {
    401: "no or a wrong token",
    408: "slow body",
    413: "body too large",
    421: "without a token: not a name of this machine",
    503: "ask again, after the seconds of Retry-After",
}
BAD = {400: "no JSON", 415: "not application/json", 422: "the message names field and value"}
# By its name: of a model FastAPI works out a schema for every status of every request. With the
# first status that all requests have, it gets the model itself.
REFUSAL = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}}}
User = Annotated[
    schemas.UserId, Path(description="the user's id", min_length=1, max_length=schemas.LONGEST_ID)
]


class _AnyText(PathConvertor):
    """An id may contain a slash; one that was imported long ago, a line feed."""

    regex = "(?s:.*)"


register_url_convertor("text", _AnyText())


def _stored_user(
    request: Request, user_id: Annotated[str, Path(description="the user's id", min_length=1)]
) -> str:
    """The id of a user who may have been stored before ids had to keep to a rule."""
    if "\ufffd" in user_id:
        try:
            urllib.parse.unquote(request.scope["raw_path"], errors="strict")
        except UnicodeDecodeError as error:
            message = f"user_id is {shown(user_id)}: it is not in UTF-8"
            raise Refusal(422, "invalid", message, field="user_id", value=user_id) from error
    return user_id


StoredUser = Annotated[str, Depends(_stored_user)]


class Json(JSONResponse):
    """A JSON answer; what is not ASCII is escaped, so that every text can be sent."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def build_app(
    service: Service, token: str | None = None, titles: Mapping[str, str] | None = None
) -> FastAPI:
    """The application; it does not close the service.

    Args:
        token: that requests to /v1/ and /metrics must bear; None for none.
        titles: of items, by their ids as text.
    """
    titles = titles or {}
    app = FastAPI(
        title="blossomrec",
        version=__version__,
        description=DESCRIPTION,
        default_response_class=Json,
        responses=_described(COMMON)
        | {401: {"model": schemas.ErrorOut, "description": COMMON[401]}},
        # Names of functions, which generated clients have as well.
        generate_unique_id_function=lambda route: route.name,
        # FastAPI's own pages load a script from elsewhere.
        docs_url=None,
        redoc_url=None,
        # Behind a proxy, the path that a redirection names would be another one.
        redirect_slashes=False,
    )
    _add_users(app, service)
    _add_recommendations(app, service)
    _add_explanations(app, service)
    _add_titles(app, service, titles)
    _add_operation(app, service)
    add_page(app)
    add_reference(app)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(
        RequestMiddleware, config=service.config, metrics=service.metrics, token=token
    )
    return app


def openapi_schema() -> dict[str, Any]:
    """What ``/openapi.json`` says, without a model or a store."""
    nobody: Any = SimpleNamespace(config=ServingConfig(), metrics=Metrics())
    return build_app(nobody).openapi()


def _described(statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": text, **REFUSAL} for status, text in statuses.items()}


def _add_users(app: FastAPI, service: Service) -> None:
    conflicts = _described(BAD | {409: "out of order in time, or a key used for another event"})
    unknown = _described({404: "no events of this user", 422: BAD[422]})

    @app.post("/v1/users/{user_id:text}/events", responses=conflicts, tags=["users"])
    async def append_events(user_id: User, body: schemas.EventsIn) -> schemas.Appended:
        """Append events; all of them are on disk when this answers, or none is stored.

        Those of items that the model does not know count as soon as a model knows them.
        """
        _check_size("events", body.events, service.config.max_events)
        events = [
            Event(one.item, one.timestamp, one.key, one.kind, _told(one.context))
            for one in body.events
        ]
        version, appended = await service.append(user_id, events)
        unknown = version.catalogue.unknown(one.item for one in events)
        answer = {"user_id": user_id, **appended._asdict(), "unknown_items": unknown}
        return _sent(answer | {"model": version.id})

    @app.get("/v1/users", responses=_described({422: BAD[422]}), tags=["users"])
    async def users(
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="users to list")] = 20,
        before: Annotated[
            str | None,
            Query(max_length=LONGEST_CURSOR, description="`next` of the list before"),
        ] = None,
    ) -> schemas.UsersOut:
        """Users by the time of their last event, the latest first."""
        found = await service.members(limit, before)
        listed = [
            {"user_id": one.user, "length": one.length, "timestamp": one.last} for one in found
        ]
        last = found[-1].cursor if len(found) == limit else None
        return _sent({"users": listed, "next": last})

    @app.get("/v1/users/{user_id:text}", responses=unknown, tags=["users"])
    async def user(
        user_id: StoredUser,
        last: Annotated[int, Query(ge=0, le=MOST_SHOWN, description="events to show")] = 20,
    ) -> schemas.UserOut:
        """How long a user's history is, and its last events."""
        version, profile = await service.profile(user_id, last)
        events = [_shown(one, version) for one in profile.last]
        answer = {"user_id": user_id, "length": profile.length, "events": events}
        return _sent(answer | {"model": version.id})

    @app.delete("/v1/users/{user_id:text}", responses=unknown, tags=["users"])
    async def delete_user(user_id: StoredUser) -> schemas.Deleted:
        """Delete a user and all events, from memory and from the files."""
        return _sent({"user_id": user_id, "events": await service.delete(user_id)})


def _add_recommendations(app: FastAPI, service: Service) -> None:
    config = service.config
    responses = _described(BAD | {404: "no events of this user"})

    @app.post("/v1/recommend", responses=responses, tags=["recommendations"])
    async def recommend(body: schemas.RecommendIn) -> schemas.Recommended:
        """The best next items for a user, or after a history that is given."""
        _check_history(body.user_id, body.history)
        _check_number("k", body.k, config.max_k)
        for name in ("history", "exclude", "items"):
            _check_size(name, getattr(body, name), config.max_items)
        _check_not_empty("items", body.items)
        version, found = await service.recommend(
            user=body.user_id,
            history=_given(body),
            k=body.k,
            filter_viewed=body.filter_viewed,
            exclude=body.exclude,
            items=body.items,
            at=body.at,
            kind=body.kind,
            rules=body.rules(config, body.k),
        )
        return _sent({"model": version.id, "items": _ranked(found), **_skipped(version, body)})

    @app.post("/v1/similar", responses=_described(BAD), tags=["recommendations"])
    async def similar(body: schemas.SimilarIn) -> schemas.SimilarOut:
        """The items whose embeddings are closest, by cosine, to each of some items."""
        _check_number("k", body.k, config.max_k)
        _check_size("items", body.items, config.max_similar)
        version, found = await service.similar(body.items, body.k)
        pairs = zip(body.items, found, strict=True)
        items = [{"item": item, "similar": _ranked(each)} for item, each in pairs]
        return _sent({"model": version.id, "items": items})


def _add_explanations(app: FastAPI, service: Service) -> None:
    responses = _described(BAD | {404: "no events of this user"})

    async def answer(asked: schemas.ExplainIn) -> Any:
        _check_history(asked.user_id, asked.history)
        _check_number("k", asked.k, service.config.max_k)
        _check_size("history", asked.history, service.config.max_items)
        wanted = {"k": asked.k, "at": asked.at, "kind": asked.kind}
        given = {"user": asked.user_id, "history": _given(asked)}
        version, found = await service.explain(asked.item_id, **given, **wanted)
        return _sent(found | _skipped(version, asked))

    @app.get("/v1/explain", responses=responses, tags=["explanations"])
    async def explain_for_user(
        user_id: Annotated[schemas.UserId, Query(description="whose stored history")],
        item_id: Annotated[schemas.ItemId, Query(description="any item of the model")],
        k: Annotated[int, Query(ge=1, description="how many events to name")] = 10,
    ) -> schemas.Explained:
        """Why an item has its score for a user: what each past event brings to it."""
        asked = {"user_id": user_id, "item_id": item_id, "k": k}
        return await answer(schemas.ExplainIn.model_validate(asked))

    @app.post("/v1/explain", responses=responses, tags=["explanations"])
    async def explain(body: schemas.ExplainIn) -> schemas.Explained:
        """The same for a user, or after a history that is given."""
        return await answer(body)


def _add_titles(app: FastAPI, service: Service, titles: Mapping[str, str]) -> None:
    @app.post("/v1/titles", responses=_described(BAD), tags=["explanations"])
    async def titles_of_items(body: schemas.TitlesIn) -> schemas.Titles:
        """Names of items for people, where the server was given them."""
        _check_size("items", body.items, service.config.max_items)
        if titles:
            found = [titles.get(str(item)) for item in body.items]
            return _sent({"known": True, "titles": found})
        # Those of the table that the model was trained with.
        version = service.version
        table = None if version.model.features is None else version.model.features.titles
        rows = [version.catalogue.row(item) for item in body.items]
        found = [table[row] or None if table and row >= 0 else None for row in rows]
        return _sent({"known": table is not None, "titles": found})


def _add_operation(app: FastAPI, service: Service) -> None:
    def told(off: list[ItemId]) -> Any:
        return _sent({"off": off, "unknown_items": service.version.catalogue.unknown(off)})

    @app.get("/v1/items", tags=["operation"])
    async def items_off() -> schemas.Off:
        """Items that are switched off."""
        return told(await service.off())

    @app.post("/v1/items", responses=_described(BAD), tags=["operation"])
    async def switch_items(body: schemas.SwitchIn) -> schemas.Off:
        """Switch items off, so that they are never recommended, or on again."""
        for name in ("off", "on"):
            _check_size(name, getattr(body, name), service.config.max_items)
        off = {*map(str, body.off)}
        for place, item in enumerate(body.on):
            if str(item) in off:
                field = f"on[{place}]"
                message = f"{field} is {item!r}: it is to be off, too"
                raise Refusal(422, "invalid", message, field=field, value=item)
        return told(await service.switch(body.off, body.on))

    @app.get("/v1/versions", tags=["operation"])
    async def versions() -> schemas.VersionsOut:
        """Versions of the model since this server has begun, and what came of their lists."""
        records, refused = service.watch.records.told()
        answer = {"versions": [_version(one) for one in records]}
        return _sent(answer | {"refused": [asdict(one) for one in refused]})

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, bool]:
        """Whether the process is alive."""
        return _sent({"alive": True})

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> schemas.Ready:
        """Which model answers; 503 where none does, or where the store cannot be used."""
        await service.check_ready()
        version = service.version
        answer = {"model": version.id, "items": len(version.catalogue)}
        known = version.known
        kinds = {"kinds": list(known.fields.kinds), "asks_kind": known.asks_kind}
        more = {"max_len": version.max_len, **kinds, "columns": version.rules.columns}
        return _sent({"ready": True, **answer, **more})

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Measures for Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")


def _sent(content: dict[str, Any]) -> Any:
    # Typed as its schema for the documentation; validated it has been where it was made.
    return Json(content)


def _told(context: schemas.Context) -> Context | None:
    """What a context says: a value that is null says nothing."""
    said = {name: value for name, value in (context or {}).items() if value is not None}
    return said or None


def _shown(event: Event, version: ModelVersion) -> dict[str, Any]:
    """A stored event, without its key; kind and context where they are known."""
    more = {"kind": event.kind, "context": event.context}
    told = {name: value for name, value in more.items() if value is not None}
    known = version.catalogue.row(event.item) >= 0
    return {"item": event.item, "timestamp": event.timestamp, "known": known, **told}


def _version(record: VersionRecord) -> dict[str, Any]:
    """A version with its rates, which are not known before an event has followed."""
    of = record.followed or None
    hits = [
        {"within": within, "events": events, "rate": of and events / of}
        for within, events in zip(WITHIN, record.hits, strict=True)
    ]
    told = asdict(record) | {"hits": hits, "mrr": of and record.reciprocal / of}
    del told["reciprocal"]
    return told


def _skipped(
    version: ModelVersion, asked: schemas.RecommendIn | schemas.ExplainIn
) -> dict[str, Any]:
    """What is said of the items of a given history that the model does not know."""
    if asked.history is None:
        return {}
    return {"unknown_items": version.catalogue.unknown(asked.history)}


def _given(asked: schemas.RecommendIn | schemas.ExplainIn) -> Given | None:
    """The history that comes with a request; None for that of a user."""
    if asked.history is None:
        for name in ("times", "kinds", "contexts"):
            if getattr(asked, name) is not None:
                raise Refusal(
                    422, "invalid", f"{name} belongs to history, not to user_id", field=name
                )
        return None
    contexts = None if asked.contexts is None else list(map(_told, asked.contexts))
    return Given(asked.history, asked.times, asked.kinds, contexts)


def _ranked(found: Sequence[tuple[Any, float]]) -> list[dict[str, Any]]:
    return [
        {"item": item, "score": score, "rank": rank} for rank, (item, score) in enumerate(found, 1)
    ]


def _check_history(user: str | None, history: Sequence[Any] | None) -> None:
    if (user is None) == (history is None):
        raise Refusal(422, "invalid", "give either user_id or history", field="user_id")
    _check_not_empty("history", history)


def _check_not_empty(field: str, values: Sequence[Any] | None) -> None:
    if values is not None and not len(values):
        raise Refusal(422, "invalid", f"{field} is empty", field=field, value=[])


def _check_size(field: str, values: Sequence[Any] | None, limit: int) -> None:
    if values is not None and len(values) > limit:
        message = f"{field} has {len(values)} entries: at most {limit} are taken"
        raise Refusal(422, "too_many", message, field=field, value=len(values))


def _check_number(field: str, value: int, limit: int) -> None:
    if value > limit:
        message = f"{field} is {value}: it must be at most {limit}"
        raise Refusal(422, "too_many", message, field=field, value=value)


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return Json(refusal.body(), refusal.status, headers=refusal.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """A request that does not fit its schema: where, what, why."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']}"
        return await _refused(request, Refusal(400, "invalid_json", message))
    field = _path(first["loc"])
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        refusal = Refusal(422, "invalid", f"{field} is missing", field=field)
    else:
        message = f"{field} is {shown(first['input'])}: {why}"
        refusal = Refusal(422, "invalid", message, field=field, value=first["input"])
    return await _refused(request, refusal)


def _path(place: Sequence[int | str]) -> str:
    """("body", "events", 3, "item") as ``events[3].item``."""
    text = ""
    for part in place[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{plain(part)}" if text else part
    return text or str(place[0])


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, path = error.status_code, plain(request.url.path)
    texts = {404: f"there is no {path}", 405: f"{path} takes no {request.method}"}
    codes = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}
    message = texts.get(status, str(error.detail))
    headers = {"Allow": _allowed(request)} if status == 405 else error.headers
    refusal = Refusal(status, codes.get(status, "http"), message, headers=headers)
    return await _refused(request, refusal)


def _allowed(request: Request) -> str:
    """The methods of all routes of a path; the router alone would name those of the first."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))
