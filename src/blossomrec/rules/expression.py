"""Expressions over the columns of a table of items: their form, and how they are read.

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | "true" | "false" | column [ comparison ]
    comparison  = ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | [ "not" ] "in" "(" value { "," value } ")" | "contains" text
    value       = number | text | "true" | "false" | "null"

Nothing of it is ever executed: it becomes a tree of the classes below.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from blossomrec.rules.tokens import ExpressionError, Token, tokens

ORDERS = ("<", "<=", ">", ">=")
COMPARISONS = ("==", "!=", *ORDERS)
# Parentheses and negations inside of each other.
DEEPEST = 100


@dataclass(frozen=True)
class Value:
    """A number, a text, true, false, or null as None."""

    value: float | str | bool | None
    place: int


@dataclass(frozen=True)
class Comparison:
    """``column operator value``; "in" and "not in" have one value or more."""

    column: str
    operator: str
    values: tuple[Value, ...]
    place: int


@dataclass(frozen=True)
class Flag:
    """A column of true and false that stands alone."""

    column: str
    place: int


@dataclass(frozen=True)
class Constant:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True)
class Not:
    """What a part is not true of."""

    part: Expression


@dataclass(frozen=True)
class And:
    """What all parts are true of."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Or:
    """What one part is true of."""

    parts: tuple[Expression, ...]


Expression = Comparison | Flag | Constant | Not | And | Or


@lru_cache(maxsize=256)
def parse(text: str) -> Expression:
    """The expression that a text is.

    Raises:
        ExpressionError: it is none; the message says at which character, and what is expected.

    Example:
        >>> parse('price < 20').operator
        '<'
    """
    return _Parser(text).whole()


class _Parser:
    """Recursive descent: a method for each rule of the grammar, one token looked at ahead."""

    def __init__(self, text: str):
        self._text, self._tokens, self._depth = text, tokens(text), 0
        self._next = next(self._tokens)

    def whole(self) -> Expression:
        found = self._expression()
        if self._next.kind != "end":
            raise self._expected("'and', 'or' or the end")
        return found

    def _expression(self) -> Expression:
        parts = [self._conjunction()]
        while self._skip("or"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self) -> Expression:
        parts = [self._negation()]
        while self._skip("and"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _negation(self) -> Expression:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ExpressionError(
                self._text,
                self._next.place,
                f"more than {DEEPEST} parts stand inside of each other",
            )
        found = self._part()
        self._depth -= 1
        return found

    def _part(self) -> Expression:
        if self._skip("not"):
            return Not(self._negation())
        if self._skip("("):
            found = self._expression()
            self._need(")")
            return found
        for word in ("true", "false"):
            if self._skip(word):
                return Constant(word == "true")
        if self._next.kind != "name":
            raise self._expected("a column, 'not' or '('")
        return self._comparison(self._take())

    def _comparison(self, column: Token) -> Expression:
        name, place = str(column.value), column.place
        for symbol in COMPARISONS:
            if self._skip(symbol):
                return Comparison(name, symbol, (self._value(),), place)
        if self._skip("contains"):
            if self._next.kind != "text":
                raise self._expected("a text in quotes")
            return Comparison(name, "contains", (self._value(),), place)
        if self._skip("not"):
            self._need("in")
            return Comparison(name, "not in", self._list(), place)
        if self._skip("in"):
            return Comparison(name, "in", self._list(), place)
        return Flag(name, place)

    def _list(self) -> tuple[Value, ...]:
        self._need("(")
        values = [self._value()]
        while self._skip(","):
            values.append(self._value())
        self._need(")", "',' or ')'")
        return tuple(values)

    def _value(self) -> Value:
        token = self._next
        constants = {"true": True, "false": False, "null": None}
        if token.kind == "word" and token.value in constants:
            return Value(constants[str(token.value)], self._take().place)
        if token.kind not in ("number", "text"):
            raise self._expected("a number, a text in quotes, true, false or null")
        return Value(token.value, self._take().place)

    def _take(self) -> Token:
        token = self._next
        # Nothing follows the end.
        self._next = next(self._tokens, token)
        return token

    def _skip(self, word: str) -> bool:
        """Whether the next token is this word or symbol, which is then passed."""
        if self._next.kind not in ("word", "symbol") or self._next.value != word:
            return False
        self._take()
        return True

    def _need(self, word: str, expected: str = "") -> None:
        if not self._skip(word):
            raise self._expected(expected or repr(word))

    def _expected(self, what: str) -> ExpressionError:
        return ExpressionError(
            self._text, self._next.place, f"{what} is expected, not {self._next}"
        )
