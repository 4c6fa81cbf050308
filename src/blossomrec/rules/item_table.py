"""The table of items that expressions are about: which one it is, and where they are true."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import numpy as np

from blossomrec.data.features import Categories, FeatureTable
from blossomrec.data.reading.features import read_features
from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.rules.columns import (
    ITEM_ID,
    CategoryColumn,
    RuleColumn,
    column_of,
    compare,
    complaint,
    strangers,
)
from blossomrec.rules.expression import And, Comparison, Constant, Expression, Flag, Not, parse
from blossomrec.rules.tokens import ExpressionError

# How a model comes to a table of items that has none.
TABLES = "prepare the log with --items, or give a table with --item-table"


class ItemTable:
    """The columns of the items of a model, for expressions.

    Args:
        items: the catalogue, of I items.
        features: what a table says of each; None without one.
        warns: of values in expressions that no item has.

    Example:
        >>> table.where('category in ("a", "b") and price < 20 and not sold_out')
        array([ True, False, ...])
    """

    def __init__(self, items: Vocabulary, features: FeatureTable | None, *, warns: bool = True):
        self.items, self.features, self._warns = items, features, warns
        self._columns: dict[str, RuleColumn] = {}

    def where(self, text: str) -> np.ndarray:
        """Of which items an expression is true, bool [I].

        Raises:
            ExpressionError: it is none, names a column that is not there, or compares one with
                what it is not; the message says at which character.
        """
        expression = parse(text)
        self._check(text, expression)
        return self._where(expression)

    def categories(self, name: str) -> Categories | None:
        """A column of categories; None where there is none of that name."""
        found = None if self.features is None else self.features.get(name)
        return found if isinstance(found, Categories) else None

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [*(() if self.features is None else self.features), ITEM_ID]

    def _column(self, name: str) -> RuleColumn:
        if name not in self._columns:
            own = self.features is not None and name in self.features
            feature: Any = self.features[name] if own and self.features else self.items
            self._columns[name] = column_of(feature, name)
        return self._columns[name]

    def _check(self, text: str, expression: Expression) -> None:
        if isinstance(expression, Constant):
            return
        if not isinstance(expression, (Comparison, Flag)):
            parts = (expression.part,) if isinstance(expression, Not) else expression.parts
            for part in parts:
                self._check(text, part)
            return
        if expression.column not in self.names:
            raise ExpressionError(text, expression.place, self._unknown(expression.column))
        column = self._column(expression.column)
        if isinstance(expression, Flag):
            if not (isinstance(column, CategoryColumn) and column.is_flag):
                what = f"{expression.column} is {column.kind}: a comparison is expected after it"
                raise ExpressionError(text, expression.place, what)
        elif (found := complaint(column, expression)) is not None:
            raise ExpressionError(text, *found)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if self.features is None:
            return f"there is no column {name!r}: the items have no table and item_id; {TABLES}"
        return f"there is no column {name!r}: the table of items has {', '.join(self.names)}{hint}"

    def _where(self, expression: Expression) -> np.ndarray:
        if isinstance(expression, Constant):
            return np.full(self.items.size, expression.value)
        if isinstance(expression, Comparison):
            column = self._column(expression.column)
            for each in strangers(column, expression) if self._warns else ():
                warnings.warn(each, stacklevel=2)
            return compare(column, expression)
        if isinstance(expression, Flag):
            column = self._column(expression.column)
            return column.holds("==", [True]) & ~column.missing()
        if isinstance(expression, Not):
            return ~self._where(expression.part)
        join = np.logical_and if isinstance(expression, And) else np.logical_or
        return join.reduce([self._where(part) for part in expression.parts])


def read_item_table(source: Any, items: Vocabulary) -> FeatureTable:
    """A table of items, a path or a frame with the column ``item_id``, of the items of a model.

    Raises:
        DataError: it cannot be read; the message names table, column, row and value.
    """
    return read_features(source, ITEM_ID, {}, ReadOptions()).aligned(items.read())
