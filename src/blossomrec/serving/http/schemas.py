"""The requests and answers of the HTTP interface."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from blossomrec.serving.given import LONGEST_ID, check_text
from blossomrec.serving.http.rule_fields import RulesIn

LARGEST_TIME = 2**63 - 1
MOST_NAMES = 64
# What a number of 32 bits holds.
LARGEST_VALUE = 3e38


def check_id(value: Any) -> int | str:
    """An id: a whole number or text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("an id is a whole number or text")
    if isinstance(value, str) and not 1 <= len(value) <= LONGEST_ID:
        raise ValueError(f"an id has 1 to {LONGEST_ID} characters, this one {len(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number over 64 bits is no id: give it as text")
    return value


def check_user(value: Any) -> str:
    """A user's id as text; 12 and "12" are the same user."""
    text = str(check_id(value))
    check_text(text)
    return text


def check_key(value: Any) -> str | None:
    """A key chosen by the sender of an event."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("a key is text")
    return check_user(value)


def check_kind(value: Any) -> str | None:
    """What a user did, or is to do."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("a kind is text")
    check_text(value, "a kind")
    return value


def check_context(value: Any) -> Any:
    """Names of a context; its values are checked one by one."""
    if not isinstance(value, dict):
        return value
    if len(value) > MOST_NAMES:
        raise ValueError(f"a context has at most {MOST_NAMES} names, this one {len(value)}")
    for name in value:
        check_text(name, "a name")
    return value


def check_value(value: Any) -> str | int | float | None:
    """A value of a context."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        raise ValueError("text, a number or null is needed")
    if isinstance(value, str):
        check_text(value, "a value", empty=True)
    elif value is not None and not abs(value) <= LARGEST_VALUE:
        raise ValueError(f"a number is at most {LARGEST_VALUE:g} and not less than its negative")
    return value


def check_moment(value: Any) -> int | float:
    """A time that must be there."""
    found = check_time(value)
    if found is None:
        raise ValueError("a timestamp is a number")
    return found


def check_time(value: Any) -> int | float | None:
    """A time in the unit of the store's times."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a timestamp is a number")
    if not math.isfinite(value) or abs(value) > LARGEST_TIME:
        raise ValueError(f"a timestamp is at most {LARGEST_TIME} and not less than its negative")
    return value


def _id_schema(examples: list[Any]) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": LONGEST_ID}
    number = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}
    return {"anyOf": [number, text], "examples": examples}


_TIME = {"type": "number", "minimum": -LARGEST_TIME, "maximum": LARGEST_TIME}
_KEY = {"type": "string", "minLength": 1, "maxLength": LONGEST_ID}
_NULL = {"type": "null"}
ItemId = Annotated[int | str, BeforeValidator(check_id), WithJsonSchema(_id_schema([1193]))]
UserId = Annotated[str, BeforeValidator(check_user), WithJsonSchema(_id_schema(["anna"]))]
Key = Annotated[str | None, BeforeValidator(check_key), WithJsonSchema({"anyOf": [_KEY, _NULL]})]
Time = Annotated[
    int | float | None, BeforeValidator(check_time), WithJsonSchema({"anyOf": [_TIME, _NULL]})
]
_MOMENT = Annotated[int | float, BeforeValidator(check_moment), WithJsonSchema(_TIME)]
Kind = Annotated[str | None, BeforeValidator(check_kind), WithJsonSchema({"anyOf": [_KEY, _NULL]})]
_VALUE = {
    "anyOf": [
        {"type": "string", "maxLength": LONGEST_ID},
        {"type": "number", "minimum": -LARGEST_VALUE, "maximum": LARGEST_VALUE},
        _NULL,
    ]
}
_CONTEXT = {
    "type": "object",
    "maxProperties": MOST_NAMES,
    "propertyNames": {"minLength": 1, "maxLength": LONGEST_ID},
    "additionalProperties": _VALUE,
}
Value = Annotated[str | int | float | None, BeforeValidator(check_value), WithJsonSchema(_VALUE)]
Context = Annotated[
    dict[str, Value] | None,
    BeforeValidator(check_context),
    WithJsonSchema({"anyOf": [_CONTEXT, _NULL]}),
]


class _Strict(BaseModel):
    """Names that are not known are refused: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EventIn(_Strict):
    """One event."""

    item: ItemId
    timestamp: Time = Field(None, description="in the unit of the store's times; now if left")
    key: Key = Field(None, description="an event with a key that is stored is not stored again")
    kind: Kind = Field(None, description="what the user did, such as buy")
    context: Context = Field(
        None, description="in what it happened: texts and numbers by the name of the column"
    )


class EventsIn(_Strict):
    """Events of one user, oldest first."""

    events: list[EventIn] = Field(min_length=1)


AT = "the moment asked for, a time since 1970 in any unit, for a model that sees it; null is now"
KIND = "the kind of event that is wanted next, for a model that sees it; null is any"


class _Asked(_Strict):
    """The history after which, and the event for which, something is asked."""

    user_id: UserId | None = Field(None, description="whose stored history; or history")
    history: list[ItemId] | None = Field(None, description="item ids, oldest first; or user_id")
    times: list[_MOMENT] | None = Field(
        None, description="of the items of history, for a model that sees them: since 1970"
    )
    kinds: list[Kind] | None = Field(
        None, description="of the items of history, for a model that sees them"
    )
    contexts: list[Context] | None = Field(
        None, description="of the items of history, for a model that sees them"
    )
    at: Time | None = Field(None, description=AT)
    kind: Kind = Field(None, description=KIND)


class RecommendIn(RulesIn, _Asked):
    """What to recommend, for a user or for a history."""

    k: int = Field(10, ge=1, description="how many items")
    filter_viewed: bool | None = Field(
        None, description="leave out the items of the history; null as the model is evaluated"
    )
    exclude: list[ItemId] = Field([], description="other items to leave out")
    items: list[ItemId] | None = Field(None, description="the only items to choose from")


class SimilarIn(_Strict):
    """Items to which similar ones are wanted."""

    items: list[ItemId] = Field(min_length=1)
    k: int = Field(10, ge=1, description="how many items for each")


class ExplainIn(_Asked):
    """An item, and the user or the history for which it is to be explained."""

    item_id: ItemId = Field(description="whose score is to be explained; any item of the model")
    k: int = Field(10, ge=1, description="how many events to name")


class SwitchIn(_Strict):
    """Items to switch off, because they are out of stock, or on again."""

    off: list[ItemId] = Field([])
    on: list[ItemId] = Field([])


class Appended(BaseModel):
    """What came of appending events."""

    user_id: str
    stored: int = Field(description="events that are new")
    repeated: int = Field(description="events whose keys were stored before")
    length: int = Field(description="events of the user's history now")
    unknown_items: list[ItemId] = Field(
        description="those that the model does not know yet, each once: their events are kept, and "
        "count as soon as a model knows them"
    )
    model: str = Field(description="version of the model")


_SKIPPED = Field(
    None,
    description="of a history in the request those that the model does not know, each once, which "
    "are skipped; left out for a user",
)


class Ranked(BaseModel):
    """One recommended item."""

    item: ItemId
    score: float
    rank: int


class Recommended(BaseModel):
    """Items, best first."""

    model: str = Field(description="version of the model")
    items: list[Ranked]
    unknown_items: list[ItemId] | None = _SKIPPED


class Neighbours(BaseModel):
    """Items like one item."""

    item: ItemId
    similar: list[Ranked]


class SimilarOut(BaseModel):
    """For each item those with the closest embeddings; score is the cosine."""

    model: str
    items: list[Neighbours]


class EventOut(BaseModel):
    """A stored event."""

    item: ItemId
    timestamp: float
    known: bool = Field(description="whether the model knows the item: others do not count yet")
    kind: str | None = Field(None, description="left out where it is not known")
    context: dict[str, Any] | None = Field(None, description="left out where there is none")


class UserOut(BaseModel):
    """A user's number of events and the last of them, oldest first."""

    user_id: str
    length: int
    events: list[EventOut]
    model: str = Field(description="version of the model")


class Listed(BaseModel):
    """A user in a list."""

    user_id: str
    length: int
    timestamp: float = Field(description="of the last event")


class UsersOut(BaseModel):
    """Users by the time of their last event, the latest first."""

    users: list[Listed]
    next: str | None = Field(description="where the list goes on: `before`; null at its end")


class Share(BaseModel):
    """An event and what it brings to the score."""

    position: int = Field(description="in the history, from 0, items unknown to the model left out")
    item: ItemId
    contribution: float


class Seen(Share):
    """An event that the last event of the history looks at."""

    weight: float = Field(description="share of the path's attention, mean over the heads")


class BlockOut(BaseModel):
    """A block of events that the last event of the history looks at."""

    own: bool = Field(description="the block that the last event itself stands in")
    heads: int = Field(description="key/value heads that selected it; all see their own")
    weight: float
    contribution: float
    events: list[Seen]


class LongPath(BaseModel):
    """The long-term path of a layer: selected blocks, oldest first."""

    gate: float = Field(
        description="weight of the path, of a union its share of the attention; mean over heads"
    )
    contribution: float = Field(description="all that passes over this path to the score")
    blocks: list[BlockOut]


class ShortPath(BaseModel):
    """The short-term path of a layer: recent events, oldest first."""

    gate: float
    contribution: float
    events: list[Seen]


class LayerOut(BaseModel):
    """What one layer looks at from the last event of the history, and what passes through it."""

    long: LongPath
    short: ShortPath


class OwnOut(BaseModel):
    """What an item has by being in the history itself."""

    contribution: float = Field(description="part of the score")
    share: float = Field(description="part of the item's probability, 0 to 1")
    words: str = Field(description="how often and when it was there")


class Explained(BaseModel):
    """Why an item has its score: the contributions of all events, ``rest`` and what there is of
    ``own`` add up to it."""

    model: str
    item: ItemId
    score: float
    rest: float = Field(description="what comes from the model's biases")
    own: OwnOut | None = Field(
        None, description="of an item of the history, where the model mixes these in"
    )
    length: int = Field(description="events of the history that the model knows")
    start: int = Field(description="position of the first event that the model sees")
    block_size: int = Field(description="events in a block; the first starts at ``start``")
    events: list[Share] = Field(description="that raise the score most, the largest first")
    items: list[ItemId] = Field(description="of all events that the model sees, oldest first")
    contributions: list[float] = Field(description="of the same events")
    layers: list[LayerOut] = Field(description="first to last")
    unknown_items: list[ItemId] | None = _SKIPPED


class Deleted(BaseModel):
    """What was deleted."""

    user_id: str
    events: int


class Off(BaseModel):
    """Items that are switched off."""

    off: list[ItemId]
    unknown_items: list[ItemId] = Field(
        description="those of them that the model does not know yet: they are off for one that does"
    )


class TitlesIn(_Strict):
    """Items whose titles are wanted."""

    items: list[ItemId] = Field(min_length=1)


class Titles(BaseModel):
    """A title for each item that was asked for, null where none is known."""

    known: bool = Field(description="whether the server was given any titles")
    titles: list[str | None]


class Ready(BaseModel):
    """The model that answers."""

    ready: bool
    model: str
    items: int
    max_len: int
    kinds: list[str] = Field(description="kinds of events that the model knows")
    asks_kind: bool = Field(description="whether it is told which kind of event is wanted")
    columns: list[str] = Field(description="of the table of items, for expressions of rules")


class HitsOut(BaseModel):
    """How many events had their item among the first of the list before them."""

    within: int = Field(description="of that many items")
    events: int
    rate: float | None = Field(description="of the events that followed; null without any")


class VersionOut(BaseModel):
    """A version of the model, and what came of its lists since this server has begun."""

    model: str
    run: str = Field(description="name of the folder it was read from")
    written: float = Field(description="when its weights were, in seconds since 1970")
    since: float = Field(description="when it was used, in seconds since 1970")
    until: float | None = Field(description="null for the version in use")
    lists: int = Field(description="that the model made")
    fallbacks: int = Field(description="that the fallback made in its place")
    followed: int = Field(description="events of users who had a list of this version before")
    hits: list[HitsOut]
    mrr: float | None = Field(description="mean of 1 / rank, 0 for an item that was not listed")


class RefusedReloadOut(BaseModel):
    """A model that was not taken."""

    at: float = Field(description="in seconds since 1970")
    why: str


class VersionsOut(BaseModel):
    """The versions that this server has used, the one in use first, and what it refused."""

    versions: list[VersionOut]
    refused: list[RefusedReloadOut]


class ErrorDetail(BaseModel):
    """What is wrong, for programs (code) and for people (message)."""

    code: str
    message: str
    field: str | None = None
    value: Any = None
    place: int | None = Field(
        None, description="of the first wrong character of an expression, from 1"
    )
    id: str | None = Field(None, description="under which the server's log says more")


class ErrorOut(BaseModel):
    """Why a request was not served."""

    error: ErrorDetail
