"""Rules in a request: how they are described, and how large they may be.

What they say is checked where the library checks it, so that the words are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, WithJsonSchema

from blossomrec.config import ServingConfig
from blossomrec.rules.rules import LARGEST_BOOST, Fallback
from blossomrec.serving.given import RULES
from blossomrec.serving.refusals import Refusal

_NULL = {"type": "null"}
_EXPRESSION = {"type": "string", "minLength": 1, "examples": ["price < 20 and not sold_out"]}
_AMOUNT = {"type": "number", "minimum": -LARGEST_BOOST, "maximum": LARGEST_BOOST}
_PAIR = {
    "type": "array",
    "prefixItems": [_EXPRESSION, _AMOUNT],
    "minItems": 2,
    "maxItems": 2,
}
_LIMIT = {"type": "integer", "minimum": 1}
_LIMITS = {"type": "object", "additionalProperties": _LIMIT}
_DIVERSITY = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_DAYS = {"type": "number", "exclusiveMinimum": 0}
_FALLBACK = {"enum": list(get_args(Fallback))}

Filter = Annotated[Any, WithJsonSchema({"anyOf": [_EXPRESSION, _NULL]})]
Boost = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "array", "items": _PAIR}, _NULL]})]
MaxPer = Annotated[Any, WithJsonSchema({"anyOf": [_LIMITS, _NULL]})]
Diversity = Annotated[Any, WithJsonSchema({"anyOf": [_DIVERSITY, _NULL]})]
Days = Annotated[Any, WithJsonSchema({"anyOf": [_DAYS, _NULL]})]
FallbackName = Annotated[Any, WithJsonSchema({"anyOf": [_FALLBACK, _NULL]})]


class RulesIn(BaseModel):
    """What decides beside the model, with what the server was started with."""

    filter: Filter = Field(
        None, description="expression over the table of items, of those that may be recommended"
    )
    boost: Boost = Field(
        None, description="pairs of an expression and what is added to the scores of its items"
    )
    max_per: MaxPer = Field(
        None, description="most items with each value, by the names of columns of categories"
    )
    diversity: Diversity = Field(
        None, description="how much an item loses by being like those before it; null as served"
    )
    exclude_seen_days: Days = Field(
        None, description="leave out what is in the last so many days of the history, no more"
    )
    fallback: FallbackName = Field(
        None, description="what is recommended where no item of the user is known; null as served"
    )

    def rules(self, config: ServingConfig, k: int) -> dict[str, Any]:
        """Those that are given, by name, for ``k`` items.

        Raises:
            Refusal: 422, one is larger than the server takes.
        """
        named = ((name, getattr(self, name)) for name in RULES)
        given = {name: rule for name, rule in named if rule is not None}
        for name in ("boost", "max_per"):
            rule = given.get(name)
            if isinstance(rule, (list, dict)) and len(rule) > config.max_rules:
                raise _too_many(name, len(rule), "entries", config.max_rules)
        for name, text in _expressions(given):
            if isinstance(text, str) and len(text) > config.max_expression:
                raise _too_many(name, len(text), "characters", config.max_expression)
        if given.get("diversity") and k > config.max_diverse:
            message = f"k is {k}: with diversity it must be at most {config.max_diverse}"
            raise Refusal(422, "too_many", message, field="k", value=k)
        return given


def _expressions(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What may be an expression, and where it stands."""
    yield "filter", given.get("filter")
    pairs = given.get("boost")
    for place, pair in enumerate(pairs if isinstance(pairs, list) else ()):
        if isinstance(pair, list) and pair:
            yield f"boost[{place}]", pair[0]


def _too_many(field: str, count: int, what: str, limit: int) -> Refusal:
    message = f"{field} has {count} {what}: at most {limit} are taken"
    return Refusal(422, "too_many", message, field=field, value=count)
