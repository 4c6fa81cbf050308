"""Types that the header of a file declares, as RecBole's does: ``name:type``."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from blossomrec.data.reading.columns import Column
from blossomrec.data.reading.kinds import guess_kind, is_title

# What a declared type is as a column of a table, and as one of the context of events.
_KINDS = {"token_seq": "category", "float": "number", "float_seq": "vector"}
_CONTEXT_KINDS = {"token": "category", "float": "number"}
# Between the parts of a sequence.
_SEPARATOR = " "


def declared_kind(column: Column, declared: str | None) -> str:
    """What a column of a table of items or users holds.

    Args:
        declared: its type, None where the source declares none. A sequence of tokens in a column
            that is called a title is one text; tokens are never numbers.
    """
    if declared == "token":
        # Told apart from titles, and from texts of which most differ.
        return guess_kind(column.as_typed())
    if declared == "token_seq" and is_title(column.name):
        return "title"
    return _KINDS.get(declared or "") or guess_kind(column)


def split_sequence(column: Column, declared: str | None, kind: str) -> Column:
    """A column of texts as lists, where sequences are declared and the kind has several values.

    Raises:
        DataError: a part of a vector is no number.
    """
    if declared not in ("token_seq", "float_seq") or kind not in ("category", "vector"):
        return column
    parts = column.values.replace("", None).str.split(_SEPARATOR)
    if kind == "category":
        return column.with_values(parts)
    numbers = parts.list.eval(pl.element().cast(pl.Float32, strict=False))
    wrong = numbers.list.eval(pl.element().is_null()).list.any()
    column.refuse(wrong, "is not a sequence of numbers with a space between them")
    return column.with_values(numbers)


def with_declared(
    context: Mapping[str, str | None], declared: Mapping[str, str]
) -> dict[str, str | None]:
    """Kinds of the columns of the context; those that are not given, as they are declared."""
    return {
        name: kind or _CONTEXT_KINDS.get(declared.get(str(name), ""))
        for name, kind in context.items()
    }
