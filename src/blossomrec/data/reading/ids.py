"""Bringing a column of ids to integers or strings, and telling of ids that look misspelled."""

from __future__ import annotations

import warnings

import polars as pl

from blossomrec.data.reading.columns import Column, largest_exact, plain_text, refuse_missing

# Words that stand for a missing value in text files; the polars reader knows only the empty field.
_MISSING_WORDS = ("nan", "null", "none", "na", "n/a", "<na>")
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_WHOLE_DECIMAL = r"^(0|-?[1-9][0-9]*)\.0+$"
_EXAMPLES = 3


def read_ids(column: Column, normalize: bool = False) -> pl.Series:
    """Ids as Int64, UInt64 (if some are over 2**63 - 1) or String; DataError for anything else.

    normalize: strip white space around text, and the zeros behind the point of whole decimals.
    """
    column = plain_text(column)
    if normalize and column.values.dtype == pl.String:
        stripped = column.values.str.strip_chars()
        column = column.with_values(stripped.str.replace(_WHOLE_DECIMAL, "$1"))
    refuse_missing(column, "id")
    values = column.values
    if values.dtype == pl.String:
        return _ids_from_text(column)
    if values.dtype.is_float():
        return _ids_from_floats(column)
    if values.dtype.is_integer() or (values.dtype.is_decimal() and not _scale(values)):
        return _ids_from_integers(column)
    column.refuse_type("strings or integers")


def _ids_from_text(column: Column) -> pl.Series:
    """Integers if the source knows only text and all are written as such, else the text."""
    values = column.values
    if column.textual and values.str.contains(_INTEGER).all():
        return _integers(values)
    # Few ids make many events: what is costly is done once an id.
    distinct = values.unique()
    if column.textual:
        integer, decimal = (distinct.str.contains(form) for form in (_INTEGER, _WHOLE_DECIMAL))
        if decimal.all():
            _warn_of_floats(column, values[0], values[0].partition(".")[0])
            return _integers(values.str.replace(_WHOLE_DECIMAL, "$1"))
        _refuse_missing_words(column, distinct, integer | decimal)
    _warn_of_spelling(column, distinct)
    return values


def _integers(values: pl.Series) -> pl.Series:
    """Integers from text, and the text where they need over 64 bits."""
    for dtype in (pl.Int64, pl.UInt64):
        numbers = values.cast(dtype, strict=False)
        if numbers.null_count() == 0:
            return numbers
    return values


def _refuse_missing_words(column: Column, distinct: pl.Series, number: pl.Series) -> None:
    """DataError for words for a missing value where all other ids are numbers."""
    others = distinct.filter(~number)
    if number.any() and _is_missing_word(others).all():
        column.refuse(column.values.is_in(others.implode()), "is not an id: it is missing")


def _is_missing_word(ids: pl.Series) -> pl.Series:
    return ids.str.strip_chars().str.to_lowercase().is_in(_MISSING_WORDS)


def _warn_of_spelling(column: Column, distinct: pl.Series) -> None:
    """Warn of ids that are probably meant to be others, or none; they stay what they are."""
    normalized = "; the option normalize_ids makes them one with those written plainly"
    for found, what, hint in (
        (distinct != distinct.str.strip_chars(), "with white space around them", normalized),
        (_decimals_among_integers(distinct), "written as decimals among integers", normalized),
        (_padded_twins(distinct), "that differ from others by a sign or leading zeros", ""),
        (_is_missing_word(distinct), "that are words for a missing value", ""),
        (distinct.str.contains(r'^".*"$'), "in quotes", "; the option quote removes them"),
    ):
        if found.any():
            _warn(column, distinct.filter(found).sort(), what, hint)


def _decimals_among_integers(distinct: pl.Series) -> pl.Series:
    integer, decimal = (distinct.str.contains(form) for form in (_INTEGER, _WHOLE_DECIMAL))
    return decimal & integer.any()


def _padded_twins(distinct: pl.Series) -> pl.Series:
    bare = distinct.str.replace(r"^\+?0*(0|[1-9][0-9]*)$", "$1")
    return (bare != distinct) & bare.is_in(distinct.implode())


def _warn(column: Column, ids: pl.Series, what: str, hint: str) -> None:
    shown = ", ".join(map(repr, ids.head(_EXAMPLES).to_list()))
    shown += ", ..." if len(ids) > _EXAMPLES else ""
    events = column.count(column.values.is_in(ids.implode()))
    warnings.warn(
        f"{column.source}, column {column.name!r}: ids {what} are taken as ids of their own: "
        f"{shown} (ids: {len(ids):,}, events: {events:,}){hint}",
        stacklevel=2,
    )


def _ids_from_floats(column: Column) -> pl.Series:
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
    _warn_of_floats(column, values[0], int(values[0]))
    return values.cast(pl.Int64)


def _warn_of_floats(column: Column, first: object, becomes: object) -> None:
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
    column.refuse(
        numbers.is_null(),
        "is not an id: integers over 64 bits (or below 0 with others over 63) are not supported",
        "; give ids as strings",
    )
    return numbers


def _scale(values: pl.Series) -> int:
    return getattr(values.dtype, "scale", 0) or 0
