"""The words of an expression over the columns of a table of items."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from blossomrec.errors import ConfigError, shortened

WORDS = ("and", "or", "not", "in", "contains", "true", "false", "null")
_PATTERN = re.compile(
    r"""(?P<blank>\s+)
    |(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>[^\W\d]\w*)
    |`(?P<quoted>[^`]+)`
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<symbol>==|!=|<=|>=|[<>(),])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

Kind = Literal["name", "number", "text", "word", "symbol", "end"]


class ExpressionError(ConfigError):
    """An expression is not one, or does not fit the table.

    Attributes:
        place: number of the character at which that shows, from 1.
    """

    def __init__(self, text: str, place: int, what: str):
        super().__init__(f"{shortened(text)}, character {place}: {what}")
        self.place, self._given = place, (text, place, what)

    # Exceptions are pickled by what their base class was given.
    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), self._given


@dataclass(frozen=True)
class Token:
    """A word of an expression.

    Attributes:
        kind: of words of the language and of columns, numbers, texts.
        value: a name, a text without its quotes, a number; else the word itself.
        place: number of its first character, from 1.
    """

    kind: Kind
    value: str | float
    place: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else shortened(self.value)


def tokens(text: str) -> Iterator[Token]:
    """The words of an expression and, last, its end.

    Raises:
        ExpressionError: there is a character that begins no word.
    """
    place = 0
    while place < len(text):
        found = _PATTERN.match(text, place)
        if found is None or found.lastgroup is None:
            _refuse(text, place)
        kind, start, place = found.lastgroup, place, found.end()
        if kind == "number" and text[place : place + 1].isalnum():
            raise ExpressionError(text, start + 1, "a number is not followed by a letter")
        if kind != "blank":
            yield _token(kind, found[kind], start + 1)
    yield Token("end", "", len(text) + 1)


def _token(kind: str, found: str, place: int) -> Token:
    if kind == "number":
        return Token("number", float(found), place)
    if kind == "text":
        return Token("text", _ESCAPE.sub(r"\1", found[1:-1]), place)
    if kind == "name" and found in WORDS:
        return Token("word", found, place)
    return Token("symbol" if kind == "symbol" else "name", found, place)


def _refuse(text: str, place: int) -> NoReturn:
    character = text[place]
    if character in "\"'`":
        raise ExpressionError(text, place + 1, f"what is quoted by {character} does not end")
    hint = "; equal is ==" if character == "=" else ""
    raise ExpressionError(text, place + 1, f"{character!r} begins nothing{hint}")
