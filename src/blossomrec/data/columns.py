"""Checking one column of a table of events and bringing it to one of a few types."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NoReturn

import polars as pl

from blossomrec.errors import DataError

# Words that stand for a missing value in text files; the polars reader knows only the empty field.
_MISSING_WORDS = ("nan", "null", "none", "na", "n/a", "<na>")
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_WHOLE_FLOAT = r"^-?[0-9]+\.0+$"
_LONGEST_SHOWN = 80
_ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d",
    "%+",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M%#z",
)


@dataclass(frozen=True)
class Column:
    """The values of one column and where they come from.

    source, name: what errors call the table and the column; textual: the source knows only text,
    so that the type is to be found out.
    """

    source: str
    name: str
    values: pl.Series
    textual: bool = False

    def with_values(self, values: pl.Series) -> Column:
        return Column(self.source, self.name, values, self.textual)

    def refuse(self, wrong: pl.Series, why: str, hint: str = "") -> None:
        """Raise DataError for the first row at which ``wrong`` is true, if there is one."""
        rows = wrong.fill_null(False).arg_true()
        if len(rows) == 0:
            return
        others = f" (and {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""
        raise DataError(
            f"{self.source}, column {self.name!r}, row {rows[0] + 1}: "
            f"{self._shown(rows[0])} {why}{others}{hint}"
        )

    def _shown(self, row: int) -> str:
        text = repr(self.values.slice(row, 1).to_list()[0])
        return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."

    def refuse_type(self, needed: str) -> NoReturn:
        """Raise DataError because of the type of the column."""
        raise DataError(
            f"{self.source}, column {self.name!r}, row 1: {self._shown(0)} is of type "
            f"{self.values.dtype}: {needed} are needed"
        )


def read_ids(column: Column) -> pl.Series:
    """Ids as Int64, UInt64 (if some are over 2**63 - 1) or String; DataError for anything else."""
    values = column.values
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    _refuse_missing(column.with_values(values), "id")
    column = column.with_values(values)
    if values.dtype == pl.String:
        return _ids_from_text(column) if column.textual else values
    if values.dtype.is_float():
        return _ids_from_floats(column)
    if values.dtype.is_integer() or (values.dtype.is_decimal() and _scale(values) == 0):
        return _ids_from_integers(column)
    column.refuse_type("strings or integers")


def read_times(column: Column) -> pl.Series:
    """Timestamps as Int64, Float64 or Datetime("us") in UTC; DataError for anything else.

    Numbers keep their unit, whatever it is; text is read as numbers if the first value is one, as
    ISO 8601 if not. Datetimes without a time zone are taken as UTC.
    """
    values = column.values
    _refuse_missing(column, "timestamp")
    if values.dtype == pl.String:
        return _times_from_text(column)
    if values.dtype in (pl.Datetime, pl.Date):
        return _to_utc(values)
    if values.dtype.is_float() or values.dtype.is_decimal():
        return _finite(column, "timestamp")
    if values.dtype.is_integer():
        numbers = values.cast(pl.Int64, strict=False)
        column.refuse(numbers.is_null(), "is too large for a timestamp")
        return numbers
    column.refuse_type("numbers, dates or datetimes")


def read_weights(column: Column) -> pl.Series:
    """Weights as Float32; DataError for what is missing, not a number, or not finite."""
    _refuse_missing(column, "weight")
    if column.values.dtype == pl.String:
        numbers = column.values.cast(pl.Float64, strict=False)
        column.refuse(numbers.is_null(), "is not a number")
    elif not column.values.dtype.is_numeric():
        column.refuse_type("numbers")
    return _finite(column, "weight").cast(pl.Float32)


def _refuse_missing(column: Column, what: str) -> None:
    column.refuse(column.values.is_null(), f"is not {_article(what)}: it is missing")
    if column.values.dtype == pl.String:
        column.refuse(column.values == "", f"is not {_article(what)}: it is empty")
    if column.values.dtype.is_float():
        column.refuse(column.values.is_nan(), f"is not {_article(what)}")


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _ids_from_text(column: Column) -> pl.Series:
    """Integers if all are written as such; words for a missing value among integers are refused."""
    values = column.values
    integer = values.str.contains(_INTEGER)
    if integer.all():
        for dtype in (pl.Int64, pl.UInt64):
            numbers = values.cast(dtype, strict=False)
            if numbers.null_count() == 0:
                return numbers
        return values
    if values.str.contains(_WHOLE_FLOAT).all():
        return _ids_from_floats(column.with_values(values.cast(pl.Float64)))
    if integer.any():
        others = values.filter(~integer).unique()
        if others.str.to_lowercase().is_in(_MISSING_WORDS).all():
            column.refuse(~integer, "is not an id: it is missing")
    return values


def _ids_from_floats(column: Column) -> pl.Series:
    values = column.values
    column.refuse(
        ~values.is_finite() | (values != values.floor()), "is not an id: it is not a whole number"
    )
    # Beyond it neighbouring integers share one float: different ids may have become the same.
    largest_exact = 2**24 if values.dtype == pl.Float32 else 2**53
    column.refuse(
        values.abs() > largest_exact,
        "is not an id: a float this large may stand for several integers",
        "; give ids as integers or strings",
    )
    warnings.warn(
        f"{column.source}, column {column.name!r}: ids are floats; all are whole numbers and "
        f"become integers ({values[0]!r} is {int(values[0])})",
        stacklevel=2,
    )
    return values.cast(pl.Int64)


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


def _times_from_text(column: Column) -> pl.Series:
    values = column.values
    for dtype in (pl.Int64, pl.Float64):
        numbers = values.cast(dtype, strict=False)
        if numbers.null_count() == 0:
            return _finite(column.with_values(numbers), "timestamp")
    parsed = _parse_iso(values)
    if parsed.null_count():
        _refuse_text_times(column, numbers.is_not_null(), parsed.is_not_null())
    return parsed


def _refuse_text_times(column: Column, number: pl.Series, datetime: pl.Series) -> None:
    """DataError for the first row that is not a time of the kind of row 1."""
    if number[0]:
        column.refuse(~number & datetime, "is a datetime, but row 1 has a number")
        column.refuse(~number, "is not a number, but row 1 has one")
    if datetime[0]:
        column.refuse(~datetime & number, "is a number, but row 1 has a datetime")
    column.refuse(
        ~datetime,
        "is neither a number nor an ISO 8601 date or datetime",
        "; 2024-01-31 and 2024-01-31T18:45:00+01:00 are",
    )


def _parse_iso(values: pl.Series) -> pl.Series:
    """Datetimes in UTC, null where the text is none; each value may have another precision."""
    parsed = pl.Series(values.name, [None], dtype=pl.Datetime("us")).new_from_index(0, len(values))
    for form in _ISO_FORMATS:
        found = _to_utc(values.str.to_datetime(form, strict=False, time_unit="us"))
        parsed = parsed.zip_with(parsed.is_not_null(), found)
        if parsed.null_count() == 0:
            break
    return parsed


def _to_utc(values: pl.Series) -> pl.Series:
    """Dates and datetimes as Datetime("us") without a zone, in UTC."""
    if getattr(values.dtype, "time_zone", None) is not None:
        values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return values.cast(pl.Datetime("us"))


def _finite(column: Column, what: str) -> pl.Series:
    """Numbers as Int64 or Float64, refused where not finite."""
    if column.values.dtype == pl.Int64:
        return column.values
    numbers = column.values.cast(pl.Float64)
    column.refuse(~numbers.is_finite(), f"is not {_article(what)}: it is not finite")
    return numbers


def _scale(values: pl.Series) -> int:
    return getattr(values.dtype, "scale", 0) or 0
