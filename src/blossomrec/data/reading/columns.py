"""Checking one column of a table of events and bringing it to one of a few types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import polars as pl

from blossomrec.errors import DataError

_LONGEST_SHOWN = 80
# From these on two neighbouring integers share one float.
_LARGEST_EXACT = {"Float16": 2**11, "Float32": 2**24, "Float64": 2**53}
# Years 1 to 9999, in microseconds since 1970: what Python's datetimes hold.
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
_MICROSECONDS = {"days": 86_400_000_000, "ms": 1_000, "us": 1}
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
    so that the type is to be found out; files: the files of a source of several, with their rows;
    rows: of the table, from 0, that the values stand in, in order, if not all from the first one
    on; counts: how many rows have each of distinct values; whole: no more values follow.
    """

    source: str
    name: str
    values: pl.Series
    textual: bool = False
    files: tuple[tuple[str, int], ...] = ()
    rows: Sequence[int] | np.ndarray | None = None
    counts: np.ndarray | None = None
    whole: bool = True

    def with_values(self, values: pl.Series) -> Column:
        return replace(self, values=values)

    def as_typed(self) -> Column:
        """The same of a source that knows types, so that text is text."""
        return replace(self, textual=False)

    def place(self, row: int) -> str:
        """Source, column and row, from 1, of a value from 0: of several files the one it is in."""
        source, row = self.source, row if self.rows is None else int(self.rows[row])
        for path, rows in self.files:
            if row < rows:
                source = path
                break
            row -= rows
        return f"{source}, column {self.name!r}, row {row + 1}"

    def refuse(self, wrong: pl.Series, why: str, hint: str = "") -> None:
        """Raise DataError for the first row at which ``wrong`` is true, if there is one."""
        rows = wrong.fill_null(False).arg_true()
        if len(rows) == 0:
            return
        more = self.count(wrong) - 1
        least = "" if self.whole else "at least "
        others = f" (and {least}{more:,} more rows)" if more else ""
        raise DataError(f"{self.place(rows[0])}: {self._shown(rows[0])} {why}{others}{hint}")

    def count(self, chosen: pl.Series) -> int:
        """Rows of the table that have the values at which ``chosen`` is true."""
        places = chosen.fill_null(False).arg_true()
        return len(places) if self.counts is None else int(self.counts[places.to_numpy()].sum())

    def _shown(self, row: int) -> str:
        value = self.values.slice(row, 1)
        if value.dtype in (pl.Datetime, pl.Date):
            # Python has no years over 9999, nor every time zone.
            value = value.to_physical()
        text = repr(value.to_list()[0])
        return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."

    def refuse_type(self, needed: str) -> NoReturn:
        """Raise DataError because of the type of the column."""
        raise DataError(
            f"{self.place(0)}: {self._shown(0)} is of type {self.values.dtype}: {needed} are needed"
        )


class Refused:
    """Values of a column that comes in pieces, in any order, and that are refused once all came."""

    def __init__(self) -> None:
        self._first: Column | None = None
        self._row = self._count = 0

    def add(self, column: Column, wrong: pl.Series) -> None:
        """Remember those at which ``wrong`` is true."""
        places = wrong.fill_null(False).arg_true().to_numpy()
        if not len(places):
            return
        rows = places if column.rows is None else np.asarray(column.rows)[places]
        first = int(rows.argmin())
        self._count += column.count(wrong)
        if self._first is None or rows[first] < self._row:
            value = column.values.gather([places[first]])
            self._row = int(rows[first])
            self._first = replace(column, values=value, rows=[self._row], whole=True)

    def refuse(self, why: str) -> None:
        """Raise DataError for the first of them, if there is one."""
        if self._first is not None:
            column = replace(self._first, counts=np.array([self._count]))
            column.refuse(pl.Series([True]), why)


def plain_text(column: Column) -> Column:
    """The column with its categories, if it has such, as text."""
    if column.values.dtype in (pl.Categorical, pl.Enum):
        return column.with_values(column.values.cast(pl.String))
    return column


def largest_exact(dtype: pl.DataType) -> int:
    """The integer from which on floats of a type cannot tell neighbours apart."""
    return _LARGEST_EXACT[str(dtype)]


def read_times(column: Column) -> pl.Series:
    """Timestamps as Int64, Float64 or Datetime("us") in UTC; DataError for anything else.

    Numbers keep their unit, whatever it is; text is read as numbers if the first value is one, as
    ISO 8601 if not. Datetimes without a time zone are taken as UTC.
    """
    column = plain_text(column)
    values = column.values
    refuse_missing(column, "timestamp")
    if values.dtype == pl.String:
        return _times_from_text(column)
    if values.dtype in (pl.Datetime, pl.Date):
        return _to_utc(column)
    if values.dtype.is_float() or values.dtype.is_decimal():
        return _distinct_floats(column)
    if values.dtype.is_integer():
        numbers = values.cast(pl.Int64, strict=False)
        column.refuse(numbers.is_null(), "is too large for a timestamp")
        return numbers
    column.refuse_type("numbers, dates or datetimes")


def read_weights(column: Column) -> pl.Series:
    """Weights as Float32; DataError for what is missing, no number, negative, or not finite."""
    column = plain_text(column)
    refuse_missing(column, "weight")
    if column.values.dtype == pl.String:
        numbers = column.values.cast(pl.Float64, strict=False)
        column.refuse(numbers.is_null(), "is not a number")
    elif not column.values.dtype.is_numeric():
        column.refuse_type("numbers")
    numbers = _finite(column, "weight")
    column.refuse(numbers < 0, "is not a weight: it is negative")
    weights = numbers.cast(pl.Float32)
    column.refuse(~weights.is_finite(), "is not a weight: it is not finite in 32 bits")
    return weights


def refuse_missing(column: Column, what: str) -> None:
    column.refuse(column.values.is_null(), f"is not {_article(what)}: it is missing")
    if column.values.dtype == pl.String:
        column.refuse(column.values == "", f"is not {_article(what)}: it is empty")
    if column.values.dtype.is_float():
        column.refuse(column.values.is_nan(), f"is not {_article(what)}")


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _times_from_text(column: Column) -> pl.Series:
    values = column.values
    for dtype in (pl.Int64, pl.Float64):
        numbers = values.cast(dtype, strict=False)
        if numbers.null_count() == 0:
            return _distinct_floats(column.with_values(numbers))
    parsed = _parse_iso(values)
    if parsed.null_count():
        _refuse_text_times(column, numbers.is_not_null(), parsed.is_not_null())
    return _to_utc(column.with_values(parsed))


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
        found = values.str.to_datetime(form, strict=False, time_unit="us")
        found = found.to_physical().cast(pl.Datetime("us"))
        parsed = parsed.zip_with(parsed.is_not_null(), found)
        if parsed.null_count() == 0:
            break
    return parsed


def _to_utc(column: Column) -> pl.Series:
    """Dates and datetimes as Datetime("us") without a zone, in UTC; DataError beyond year 9999."""
    numbers = column.values.to_physical().cast(pl.Int64)
    unit = getattr(column.values.dtype, "time_unit", "days")
    if unit == "ns":
        # 64 bits reach from 1677 to 2262.
        return (numbers // 1_000).cast(pl.Datetime("us"))
    factor = _MICROSECONDS[unit]
    column.refuse(
        (numbers < _FIRST // factor) | (numbers > _LAST // factor),
        f"({unit} since 1970) is not a timestamp: it is outside of the years 1 to 9999",
    )
    return (numbers * factor).cast(pl.Datetime("us"))


def _distinct_floats(column: Column) -> pl.Series:
    """Numbers as Int64 or Float64; DataError where floats merge neighbouring times."""
    numbers = _finite(column, "timestamp")
    if column.values.dtype.is_float():
        column.refuse(
            column.values.abs() >= largest_exact(column.values.dtype),
            f"is not a timestamp: a {column.values.dtype} this large stands for several times",
            "; give times as integers",
        )
    return numbers


def _finite(column: Column, what: str) -> pl.Series:
    """Numbers as Int64 or Float64, refused where not finite."""
    if column.values.dtype == pl.Int64:
        return column.values
    numbers = column.values.cast(pl.Float64)
    column.refuse(~numbers.is_finite(), f"is not {_article(what)}: it is not finite")
    return numbers
