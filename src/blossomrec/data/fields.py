"""What events say besides user, item and time: their kind, and the context they happened in."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np

from blossomrec.data.features import FeatureTable
from blossomrec.errors import DataError, shortened

# Where a value is not known: of a category, and of a number.
MISSING = math.nan


@dataclass(frozen=True)
class ContextField:
    """A column of the context: one of a set of names, or a number.

    Attributes:
        name: of the column.
        kind: "category" or "number".
        names: of a category's values 1, 2, ...; 0 stands for a name that is not known.
        mean, deviation: of a number, over the events of the log.
    """

    name: str
    kind: Literal["category", "number"]
    names: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def size(self) -> int:
        """Numbers in use by a category, unknown included; 1 for a number."""
        return len(self.names) + 1 if self.kind == "category" else 1

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names, 1)}

    def knows(self, value: Any) -> bool:
        """Whether a category has this name; every number is known."""
        return self.kind == "number" or value is None or as_name(value) in self._numbers

    def number(self, value: Any) -> float:
        """The value as it stands in ``context``: number of the name, or the number itself.

        Raises:
            DataError: a number is wanted and something else, or one that is not finite, is given.
        """
        if value is None:
            return MISSING
        if self.kind == "category":
            return float(self._numbers.get(as_name(value), 0))
        if isinstance(value, date):
            return _days(value)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise DataError(f"context {self.name!r} is {shortened(value)}: a number is needed")
        if not abs(float(value)) < 3e38:
            raise DataError(f"context {self.name!r} is {value}: it is not finite in 32 bits")
        return float(value)


def as_name(value: Any) -> str:
    """A kind, or a value of a category, as tables have it: true for True, 3 for 3.0."""
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value).strip()


def listed(text: str) -> list[str]:
    """Texts with commas between them, without white space around; one with a comma is in quotes.

    >>> listed('buy=1, "a,b"=2')
    ['buy=1', 'a,b=2']
    """
    try:
        (entries,) = csv.reader([text], skipinitialspace=True)
    except (csv.Error, ValueError):
        entries = text.split(",")
    return [entry.strip() for entry in entries]


def _days(value: date) -> float:
    """Days since 1970 (UTC), as tables have dates."""
    if not isinstance(value, datetime):
        return float((value - date(1970, 1, 1)).days)
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() / 86_400


@dataclass(frozen=True)
class EventFields:
    """The kinds of events of a log, or that a model knows, and the columns of their context.

    Attributes:
        kinds: names of the kinds 1, 2, ...; 0 stands for a kind that is not known. Empty where
            events have none.
        context: columns, in their order.

    Example:
        >>> fields = EventFields(("click", "buy"), (ContextField("shop", "category", ("web",)),))
        >>> fields.kind_numbers(["buy", None]).tolist(), fields.row({"shop": "web"}).tolist()
        ([2, 0], [1.0])
    """

    kinds: tuple[str, ...] = ()
    context: tuple[ContextField, ...] = ()
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.kinds, 1)}
        object.__setattr__(self, "_numbers", numbers)

    def kind(self, name: str | None) -> int:
        """Number of a kind that is asked for; 0 for None.

        Raises:
            DataError: there is no such kind.
        """
        if name is None:
            return 0
        if not isinstance(name, str) or name not in self._numbers:
            known = ", ".join(map(repr, self.kinds)) or "none"
            raise DataError(f"kind is {shortened(name)}: known are {known}")
        return self._numbers[name]

    def kind_numbers(self, names: Sequence[str | None]) -> np.ndarray:
        """Numbers of the kinds of events, int64 [n]; 0 for those that are not known."""
        return np.fromiter((self._numbers.get(name or "", 0) for name in names), np.int64)

    def row(self, values: Mapping[str, Any] | None) -> np.ndarray:
        """The context of an event, float32 [C]; names that are no column are left out.

        Raises:
            DataError: as of :meth:`ContextField.number`.
        """
        given = values or {}
        return np.array([each.number(given.get(each.name)) for each in self.context], np.float32)

    def rows(self, values: Sequence[Mapping[str, Any] | None]) -> np.ndarray:
        """The contexts of n events, float32 [n, C]."""
        found = [self.row(each) for each in values]
        return np.stack(found) if found else np.empty((0, len(self.context)), np.float32)

    def values(self, row: np.ndarray) -> dict[str, str | float] | None:
        """The context that a row, float32 [C], stands for; None where nothing of it is known."""
        found = dict[str, str | float]()
        for each, value in zip(self.context, row, strict=True):
            if each.kind == "category" and value > 0:
                found[each.name] = each.names[int(value) - 1]
            elif each.kind == "number" and not np.isnan(value):
                # As short as it can be written: 0.1 in 32 bits is more than that in 64.
                found[each.name] = float(str(value))
        return found or None

    def unknown(self, kind: str | None, values: Mapping[str, Any] | None) -> str:
        """What of an event is not known, in words; empty where all is."""
        if kind is not None and kind not in self._numbers:
            return f"kind {shortened(kind)}"
        columns = {each.name: each for each in self.context}
        for name, value in (values or {}).items():
            if name not in columns:
                return f"context column {shortened(name)}"
            if not columns[name].knows(value):
                return f"context {name!r} with {shortened(value)}"
        return ""

    def translated(self, other: EventFields) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """For the numbers of ``other``, those of the same names here.

        Returns:
            int64 [K+1] for the kinds, and for each column here one float32 [size] for a category of
            ``other``; None for a number, or where ``other`` has no such column.
        """
        kinds = np.concatenate([[0], self.kind_numbers(other.kinds)])
        theirs = {each.name: each for each in other.context}
        columns = list[np.ndarray | None]()
        for each in self.context:
            there = theirs.get(each.name)
            categories = there is not None and each.kind == there.kind == "category"
            names = there.names if there is not None and categories else ()
            numbers = np.array([0.0, *map(each.number, names)], np.float32)
            columns.append(numbers if categories else None)
        return kinds, columns

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form."""
        columns = [
            {"name": each.name, "kind": each.kind, "names": list(each.names)}
            if each.kind == "category"
            else {
                "name": each.name,
                "kind": each.kind,
                "mean": each.mean,
                "deviation": each.deviation,
            }
            for each in self.context
        ]
        return {"kinds": list(self.kinds), "context": columns}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> EventFields:
        """What :meth:`to_dict` gave.

        Raises:
            DataError: it is damaged; the message says ``where``.
        """
        try:
            kinds, columns = values["kinds"], values["context"]
            context = tuple(
                ContextField(**{**one, "names": tuple(one.get("names", ()))}) for one in columns
            )
            texts = [
                *kinds,
                *(one.name for one in context),
                *(n for one in context for n in one.names),
            ]
            numbers = [n for one in context for n in (one.mean, one.deviation)]
            right = all(type(one) is str for one in texts) and all(
                type(one) in (int, float) and math.isfinite(one) for one in numbers
            )
            right = right and all(one.kind in ("category", "number") for one in context)
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where} is damaged: its fields are none") from error
        if not right:
            raise DataError(f"{where} is damaged: its fields are none")
        return cls(tuple(kinds), context)


@dataclass(frozen=True)
class Tables:
    """What a log, or a saved model, knows besides who had which item when.

    Attributes:
        items, users: of each row of their vocabularies; None without such a table.
        fields: kinds of events, and columns of their context.
    """

    items: FeatureTable | None = None
    users: FeatureTable | None = None
    fields: EventFields = EventFields()
