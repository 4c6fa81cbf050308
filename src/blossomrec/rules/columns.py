"""What an expression may ask of each kind of column of a table of items, and the answers.

A comparison with what is missing is false, ``!=`` and ``not in`` included; ``== null`` tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from blossomrec.data.features import Categories, Feature, Numbers, Titles, Vectors
from blossomrec.data.fields import as_name
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import shortened
from blossomrec.rules.expression import COMPARISONS, ORDERS, Comparison, Value

ITEM_ID = "item_id"
EQUALITY = ("==", "!=", "in", "not in")
_ORDERS: dict[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


class RuleColumn(Protocol):
    """A column of I items.

    Attributes:
        kind: in words.
        operators: those that it has, but for comparisons with null.
        values: what it is compared with, in words.
    """

    kind: str
    operators: tuple[str, ...]
    values: str

    def takes(self, value: Any) -> bool:
        """Whether it can be compared with a value, which is not null."""
        ...

    def missing(self) -> np.ndarray:
        """Where there is no value, bool [I]."""
        ...

    def holds(self, operator: str, values: list[Any]) -> np.ndarray:
        """Where one of the values stands in this relation, bool [I]; anything where it is missing.

        Args:
            operator: "==", "contains" or one of ``ORDERS``.
        """
        ...

    def strangers(self, values: list[Any]) -> list[str]:
        """What to say of values that no item has, where that is likely a slip."""
        ...


def column_of(feature: Feature | Vocabulary, name: str) -> RuleColumn:
    """The column that a feature, or the ids of the items, is for expressions."""
    for kind, column in _COLUMNS.items():
        if isinstance(feature, kind):
            return column(feature, name)
    raise TypeError(f"{name} is a {type(feature).__name__}")


def compare(column: RuleColumn, comparison: Comparison) -> np.ndarray:
    """Where a comparison that was checked holds, bool [I]."""
    values = [each.value for each in comparison.values]
    operator, missing = comparison.operator, column.missing()
    if values == [None]:
        return missing if operator == "==" else ~missing
    negated = operator in ("!=", "not in")
    found = column.holds("==" if operator in EQUALITY else operator, values)
    return (~found if negated else found) & ~missing


def strangers(column: RuleColumn, comparison: Comparison) -> list[str]:
    """What to say of the values of a comparison that no item has."""
    if comparison.operator not in EQUALITY or comparison.values[0].value is None:
        return []
    return column.strangers([each.value for each in comparison.values])


def complaint(column: RuleColumn, comparison: Comparison) -> tuple[int, str] | None:
    """Where and why a comparison does not fit its column; None where it does."""
    operator, name = comparison.operator, comparison.column
    for each in comparison.values:
        if each.value is None:
            if operator not in ("==", "!="):
                return each.place, f"null is compared by == and != alone, not by {operator}"
            return None
    if operator not in column.operators:
        known = ", ".join(column.operators) or "== null and != null alone"
        return comparison.place, f"{name} is {column.kind}: {known} is expected, not {operator}"
    wrong = next((each for each in comparison.values if not column.takes(each.value)), None)
    if wrong is not None:
        shown = _shown(wrong)
        return wrong.place, f"{name} is {column.kind}: {column.values} is expected, not {shown}"
    return None


def _shown(value: Value) -> str:
    return str(value.value).lower() if isinstance(value.value, bool) else shortened(value.value)


class NumberColumn:
    """Numbers, compared as they are kept, in 32 bits."""

    kind, values = "a number", "a number"
    operators: tuple[str, ...] = (*COMPARISONS, "in", "not in")

    def __init__(self, numbers: Numbers, name: str):
        self._numbers = np.asarray(numbers.values)

    def takes(self, value: Any) -> bool:
        return isinstance(value, float)

    def missing(self) -> np.ndarray:
        return np.isnan(self._numbers)

    def holds(self, operator: str, values: list[Any]) -> np.ndarray:
        with np.errstate(over="ignore"):
            wanted = np.array(values, np.float64).astype(np.float32)
        if operator in ORDERS:
            return _ORDERS[operator](self._numbers, wanted[0])
        return np.isin(self._numbers, wanted)

    def strangers(self, values: list[Any]) -> list[str]:
        return []


class CategoryColumn:
    """One or several names of each item: it has a value if one of its names is that."""

    kind, values = "a category", "a text in quotes, a number, true or false"
    operators: tuple[str, ...] = (*EQUALITY, "contains")

    def __init__(self, categories: Categories, name: str):
        self._categories, self._name = categories, name
        self._names = categories.names.all()

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false, and so may stand alone."""
        return bool(self._names) and {name.lower() for name in self._names} <= {"true", "false"}

    def takes(self, value: Any) -> bool:
        return True

    def missing(self) -> np.ndarray:
        return ~self._any(np.arange(self._categories.size) > 0)

    def holds(self, operator: str, values: list[Any]) -> np.ndarray:
        names, wanted = self._named(values)
        if operator == "contains":
            part = wanted[0].casefold()
            return self._any(np.array([False, *(part in name.casefold() for name in names)]))
        known = set(wanted)
        return self._any(np.array([False, *(name in known for name in names)]))

    def strangers(self, values: list[Any]) -> list[str]:
        names, wanted = self._named(values)
        unknown = dict.fromkeys(wanted).keys() - set(names)
        return [f"no item has {self._name} {shortened(each)}" for each in unknown]

    def _named(self, values: list[Any]) -> tuple[list[str], list[str]]:
        """The names there are, and those that values stand for."""
        names, wanted = self._names, [as_name(value) for value in values]
        if self.is_flag:
            names, wanted = [name.lower() for name in names], [each.lower() for each in wanted]
        return names, wanted

    def _any(self, numbers: np.ndarray) -> np.ndarray:
        """Which items have one of the numbers, bool [size]."""
        starts = self._categories.offsets[:-1]
        return np.logical_or.reduceat(numbers[self._categories.values], starts)


class TitleColumn:
    """A text of each item."""

    kind, values = "a text", "a text in quotes"
    operators: tuple[str, ...] = (*EQUALITY, "contains")

    def __init__(self, titles: Titles, name: str):
        self._titles = titles

    def takes(self, value: Any) -> bool:
        return isinstance(value, str)

    def missing(self) -> np.ndarray:
        return np.diff(self._titles.offsets) == 0

    def holds(self, operator: str, values: list[Any]) -> np.ndarray:
        texts = (self._titles[row] for row in range(len(self._titles)))
        if operator == "contains":
            part = values[0].casefold()
            found = (part in text.casefold() for text in texts)
        else:
            found = (text in values for text in texts)
        return np.fromiter(found, bool, len(self._titles))

    def strangers(self, values: list[Any]) -> list[str]:
        return []


class VectorColumn:
    """Vectors, which are there or not; no operator holds of them."""

    kind, values = "a vector", "null"
    operators: tuple[str, ...] = ()

    def __init__(self, vectors: Vectors, name: str):
        self._vectors = vectors

    def takes(self, value: Any) -> bool:
        return False

    def missing(self) -> np.ndarray:
        return np.asarray(np.isnan(self._vectors.values).any(1))

    def holds(self, operator: str, values: list[Any]) -> np.ndarray:
        return np.zeros(len(self._vectors.values), bool)

    def strangers(self, values: list[Any]) -> list[str]:
        return []


class IdColumn:
    """The ids of the items; "12" stands for 12 and 12 for "12", as everywhere."""

    kind, values = "an id", "a whole number or a text in quotes"
    operators: tuple[str, ...] = EQUALITY

    def __init__(self, items: Vocabulary, name: str):
        self._items = items

    def takes(self, value: Any) -> bool:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        return whole or isinstance(value, str)

    def missing(self) -> np.ndarray:
        return np.zeros(self._items.size, bool)

    def holds(self, operator: str, values: list[Any]) -> np.ndarray:
        rows = self._items.rows(_ids(values))
        found = np.zeros(self._items.size, bool)
        found[rows[rows >= 0]] = True
        return found

    def strangers(self, values: list[Any]) -> list[str]:
        ids = _ids(values)
        pairs = zip(ids, self._items.rows(ids), strict=True)
        return [f"no item has the id {shortened(each)}" for each, row in pairs if row < 0]


def _ids(values: list[Any]) -> list[int | str]:
    return [int(each) if isinstance(each, float) else each for each in values]


_COLUMNS: dict[type, Callable[[Any, str], RuleColumn]] = {
    Numbers: NumberColumn,
    Categories: CategoryColumn,
    Titles: TitleColumn,
    Vectors: VectorColumn,
    Vocabulary: IdColumn,
}
