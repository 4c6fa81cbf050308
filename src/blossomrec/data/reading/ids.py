"""Bringing a column of ids to integers or strings, and telling of ids that look misspelled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import polars as pl

from blossomrec.data.reading.columns import Column, largest_exact, plain_text, refuse_missing

# Words that stand for a missing value in text files; the polars reader knows only the empty field.
_MISSING_WORDS = ("nan", "null", "none", "na", "n/a", "<na>")
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_WHOLE_DECIMAL = r"^(0|-?[1-9][0-9]*)\.0+$"
_EXAMPLES = 3


def read_ids(column: Column, normalize: bool = False, *, warn: bool = True) -> pl.Series:
    """Ids as Int64, UInt64 (if some are over 2**63 - 1) or String; DataError for anything else.

    normalize: strip white space around text, and the zeros behind the point of whole decimals.
    warn: tell that floats become integers.
    """
    column = plain_text(column)
    if normalize:
        column = normalized(column)
    refuse_missing(column, "id")
    values = column.values
    if values.dtype == pl.String:
        return _ids_from_text(column)
    if values.dtype.is_float():
        return _ids_from_floats(column, warn=warn)
    if values.dtype.is_integer() or (values.dtype.is_decimal() and not _scale(values)):
        return _ids_from_integers(column)
    column.refuse_type("strings or integers")


def normalized(column: Column) -> Column:
    """Text without white space around it, whole decimals without the zeros behind the point."""
    if column.values.dtype != pl.String:
        return column
    stripped = column.values.str.strip_chars()
    return column.with_values(stripped.str.replace(_WHOLE_DECIMAL, "$1"))


def _ids_from_text(column: Column) -> pl.Series:
    """Integers if the source knows only text and all are written as such, else the text."""
    values = column.values
    if column.textual and values.str.contains(_INTEGER).all():
        return _integers(values)
    # Few ids make many events: what is costly is done once an id.
    distinct, facts = _each_once(column), TextFacts(column.textual)
    facts.add(distinct)
    if facts.are_numbers:
        warn_of_floats(column, values[0], values[0].partition(".")[0])
        return as_integers(values, facts.number_type)
    facts.refuse_missing_words()
    spellings = Spellings(
        any_integer=facts.any_integer,
        is_known=lambda texts: texts.is_in(distinct.values.implode()),
    )
    spellings.add(distinct)
    spellings.warn()
    return values


def _each_once(column: Column) -> Column:
    """The distinct values of a column, with their first rows and how many rows have them."""
    table = pl.DataFrame({"value": column.values}).with_row_index("row")
    met = table.group_by("value", maintain_order=True).agg(pl.col("row").first(), pl.len())
    rows, counts = met["row"].to_numpy().astype(np.int64), met["len"].to_numpy().astype(np.int64)
    if column.counts is not None:
        # They are distinct already.
        counts = column.counts
    if column.rows is not None:
        rows = np.asarray(column.rows)[rows]
    return replace(column, values=met["value"], rows=rows, counts=counts)


class TextFacts:
    """What distinct texts, that come in parts, tell all together.

    Args:
        textual: the source knows only text, so that texts may stand for numbers.

    Attributes:
        any_integer: whether one is written as an integer.
    """

    def __init__(self, textual: bool):
        self._all_integers = self._all_decimals = self._all_words = textual
        self._fits = {pl.Int64: True, pl.UInt64: True}
        self._any_number = self.any_integer = False
        self._others = list[Column]()

    def add(self, column: Column) -> None:
        """Look at some more; ``rows`` and ``counts`` of the column are known."""
        values = column.values
        integer, decimal = (values.str.contains(form) for form in (_INTEGER, _WHOLE_DECIMAL))
        self.any_integer |= bool(integer.any())
        self._all_integers &= bool(integer.all())
        self._all_decimals &= bool(decimal.all())
        self._any_number |= bool((integer | decimal).any())
        if self.are_numbers:
            whole = _whole(values)
            for dtype in self._fits:
                self._fits[dtype] &= whole.cast(dtype, strict=False).null_count() == 0
        others = (~(integer | decimal)).arg_true()
        self._all_words &= bool(_is_missing_word(values.gather(others)).all())
        if self._all_words and len(others):
            assert column.rows is not None and column.counts is not None
            rows = np.asarray(column.rows)[others.to_numpy()]
            counts = column.counts[others.to_numpy()]
            self._others.append(
                replace(column, values=values.gather(others), rows=rows, counts=counts)
            )

    @property
    def are_numbers(self) -> bool:
        """Whether all are integers, or all whole decimals."""
        return self._all_integers or self._all_decimals

    @property
    def are_decimals(self) -> bool:
        """Whether all are whole decimals."""
        return self._all_decimals

    @property
    def number_type(self) -> type[pl.DataType] | None:
        """The integers that hold them, if they are numbers; None where these need over 64 bits."""
        return next((dtype for dtype, fits in self._fits.items() if fits), None)

    def refuse_missing_words(self) -> None:
        """DataError for words for a missing value where all other ids are numbers."""
        if not (self._any_number and self._all_words and self._others):
            return
        rows = np.concatenate([np.asarray(one.rows) for one in self._others])
        counts = np.concatenate([np.asarray(one.counts) for one in self._others])
        values, order = pl.concat([one.values for one in self._others]), np.argsort(rows)
        found = replace(
            self._others[0], values=values.gather(order), rows=rows[order], counts=counts[order]
        )
        found.refuse(pl.repeat(True, len(order), eager=True), "is not an id: it is missing")


def as_integers(values: pl.Series, dtype: type[pl.DataType] | None) -> pl.Series:
    """Texts that are whole numbers, or whole decimals, as integers; without a type as texts."""
    whole = _whole(values)
    return whole if dtype is None else whole.cast(dtype)


def _whole(values: pl.Series) -> pl.Series:
    return values.str.replace(_WHOLE_DECIMAL, "$1")


def _integers(values: pl.Series) -> pl.Series:
    """Integers from text, and the text where they need over 64 bits."""
    for dtype in (pl.Int64, pl.UInt64):
        numbers = values.cast(dtype, strict=False)
        if numbers.null_count() == 0:
            return numbers
    return values


def _is_missing_word(ids: pl.Series) -> pl.Series:
    return ids.str.strip_chars().str.to_lowercase().is_in(_MISSING_WORDS)


class Spellings:
    """Ids that are probably meant to be others, or none, among distinct texts that come in parts.

    Args:
        any_integer: whether one of all is written as an integer.
        is_known: of texts, whether they are among all of them: bool.
    """

    _NORMALIZED = "; the option normalize_ids makes them one with those written plainly"
    # What they are, by what tells them apart, and what helps.
    _HINTS: ClassVar[dict[str, str]] = {
        "with white space around them": _NORMALIZED,
        "written as decimals among integers": _NORMALIZED,
        "that differ from others by a sign or leading zeros": "",
        "that are words for a missing value": "",
        "in quotes": "; the option quote removes them",
    }

    def __init__(self, *, any_integer: bool, is_known: Callable[[pl.Series], pl.Series]):
        self._any_integer, self._is_known = any_integer, is_known
        self._examples: list[list[str]] = [[] for _ in self._HINTS]
        self._ids, self._events = [0] * len(self._HINTS), [0] * len(self._HINTS)
        self._column: Column | None = None

    def add(self, column: Column) -> None:
        """Look at some more."""
        values, self._column = column.values, column
        for number, found in enumerate(
            (
                values != values.str.strip_chars(),
                values.str.contains(_WHOLE_DECIMAL) & self._any_integer,
                self._padded_twins(values),
                _is_missing_word(values),
                values.str.contains(r'^".*"$'),
            )
        ):
            if found.any():
                shown = values.filter(found).sort().head(_EXAMPLES).to_list()
                self._examples[number] = sorted([*self._examples[number], *shown])[:_EXAMPLES]
                self._ids[number] += int(found.sum())
                self._events[number] += column.count(found)

    def warn(self) -> None:
        """Warn of them; they stay what they are."""
        for (what, hint), examples, ids, events in zip(
            self._HINTS.items(), self._examples, self._ids, self._events, strict=True
        ):
            if ids:
                assert self._column is not None
                shown = ", ".join(map(repr, examples)) + (", ..." if ids > _EXAMPLES else "")
                warnings.warn(
                    f"{self._column.source}, column {self._column.name!r}: ids {what} are taken "
                    f"as ids of their own: {shown} (ids: {ids:,}, events: {events:,}){hint}",
                    stacklevel=2,
                )

    def _padded_twins(self, values: pl.Series) -> pl.Series:
        bare = values.str.replace(r"^\+?0*(0|[1-9][0-9]*)$", "$1")
        twins = bare != values
        places = twins.arg_true()
        if len(places):
            known = self._is_known(bare.gather(places))
            twins = twins.scatter(places.filter(~known), False)
        return twins


def _ids_from_floats(column: Column, *, warn: bool) -> pl.Series:
    values = column.values
    column.refuse(
        ~values.is_finite() | (values != values.floor()), "is not an id: it is not a whole number"
    )
    # From there on neighbouring integers share one float: different ids may have become the same.
    column.refuse(
        values.abs() >= largest_exact(values.dtype),
        "is not an id: a float this large may stand for several integers",
        "; give ids as integers or strings",
    )
    if warn:
        warn_of_floats(column, values[0], int(values[0]))
    return values.cast(pl.Int64)


def warn_of_floats(column: Column, first: object, becomes: object) -> None:
    """Tell that floats become integers, such as the first one."""
    warnings.warn(
        f"{column.source}, column {column.name!r}: ids are floats; all are whole numbers and "
        f"become integers ({first} is {becomes})",
        stacklevel=2,
    )


def _ids_from_integers(column: Column) -> pl.Series:
    for dtype in (pl.Int64, pl.UInt64):
        numbers = column.values.cast(dtype, strict=False)
        if numbers.null_count() == 0:
            return numbers
    refuse_mixed_signs(column, numbers.is_null())
    return numbers


def refuse_mixed_signs(column: Column, wrong: pl.Series | None = None) -> None:
    """DataError for the first integer that none of both types of 64 bits holds with the others.

    wrong: which; all without it.
    """
    column.refuse(
        pl.repeat(True, len(column.values), eager=True) if wrong is None else wrong,
        "is not an id: integers over 64 bits (or below 0 with others over 63) are not supported",
        "; give ids as strings",
    )


def _scale(values: pl.Series) -> int:
    return getattr(values.dtype, "scale", 0) or 0
