"""Columns of a table that comes in batches: checked, and made numbers that are kept on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from blossomrec.data.reading.columns import Column, plain_text, read_times
from blossomrec.data.reading.kinds import guess_kind, read_context
from blossomrec.errors import DataError

# Behind the last whole number whose neighbours floats of 64 bits tell apart.
_LARGEST_EXACT = 2**53


class BatchColumn(ABC):
    """A column whose batches become numbers, and after the last one what these stand for."""

    @abstractmethod
    def add(self, column: Column) -> pl.Series:
        """Numbers that stand for the values of the next batch.

        Raises:
            DataError: a value is refused; the message names its place.
        """

    @abstractmethod
    def close(self) -> None:
        """Check what only all values together tell.

        Raises:
            DataError: a value is refused; the message names its place.
        """

    @abstractmethod
    def decoded(self, numbers: pl.Series, batch: int) -> np.ndarray:
        """What the numbers of a batch, from 0, stand for; only once it is closed."""


class DistinctValues:
    """The distinct values of a column, in order of their first rows."""

    def __init__(self) -> None:
        self._known: pl.DataFrame | None = None
        self.counts = np.zeros(0, np.int64)
        self._last: Column | None = None

    def codes(self, column: Column) -> pl.Series:
        """For each value of the next batch its place among the distinct ones, Int32."""
        column = plain_text(column)
        values = column.values
        if values.dtype == pl.Null:
            values = values.cast(pl.String)
        self._last = column.with_values(values)
        batch = pl.DataFrame({"value": values}).with_row_index("row")
        met = batch.group_by("value", maintain_order=True).agg(pl.col("row").first(), pl.len())
        known = met.clear().with_columns(code=pl.lit(0, pl.Int32)).drop("len")
        if self._known is not None:
            known = self._known
        first = 0 if column.rows is None else int(column.rows[0])
        met = _looked_up(met, known).with_columns(pl.col("row").cast(pl.Int64) + first)
        new = met.filter(pl.col("code").is_null()).drop("code")
        new = new.with_columns(
            code=pl.int_range(known.height, known.height + new.height, dtype=pl.Int32)
        )
        self._known = pl.concat(
            [known.with_columns(pl.col("row").cast(pl.Int64)), new.select(known.columns)]
        )
        met = _looked_up(met.drop("code"), self._known)
        self.counts = np.concatenate([self.counts, np.zeros(new.height, np.int64)])
        self.counts[met["code"].to_numpy()] += met["len"].to_numpy()
        return _looked_up(batch.drop("row"), met)["code"]

    def column(self) -> Column:
        """The distinct values, with the rows where each stands first and how many have it."""
        assert self._known is not None and self._last is not None
        values, rows = self._known["value"], self._known["row"].to_numpy()
        return replace(self._last, values=values, rows=rows, counts=self.counts, whole=True)


def _looked_up(table: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The table with the codes of its values, null where they are not known."""
    codes = known.select("value", "code")
    return table.join(codes, on="value", how="left", nulls_equal=True, maintain_order="left")


class NameColumn(BatchColumn):
    """Kinds or categories; each stands for its name's place among all of them, sorted, from 1.

    Text that turns out to be numbers stands for those.

    Args:
        read: from a column of distinct values, String or Float32.

    Attributes, once it is closed:
        names: sorted; None where they are numbers.
    """

    def __init__(self, read: Callable[[Column], pl.Series]):
        self._read, self._values = read, DistinctValues()

    def add(self, column: Column) -> pl.Series:
        if not _comparable(column):
            self._read(column)
        return self._values.codes(column)

    def close(self) -> None:
        read = self._read(self._values.column())
        self.names: tuple[str, ...] | None = None
        if read.dtype != pl.String:
            self._numbers = read.fill_null(np.nan).to_numpy()
            return
        names = read.drop_nulls().unique().sort()
        self.names = tuple(names.to_list())
        places = pl.Series(np.arange(1, len(names) + 1, dtype=np.int32))
        found = read.replace_strict(names, places, default=0, return_dtype=pl.Int32)
        self._numbers = found.to_numpy()

    def decoded(self, numbers: pl.Series, batch: int) -> np.ndarray:
        return self._numbers[numbers.to_numpy()]


class NumberColumn(BatchColumn):
    """Numbers that stand for themselves, NaN where one is missing: weights, or numbers of the
    context, of which there must be one.

    Args:
        read: from a column of a batch, Float32.
        sparse: there may be none.
    """

    def __init__(self, read: Callable[[Column], pl.Series], *, sparse: bool = False):
        self._read, self._known = read, sparse

    def add(self, column: Column) -> pl.Series:
        read = self._read(column)
        self._known |= read.null_count() < len(read)
        self._where = f"{column.source}, column {column.name!r}"
        return read

    def close(self) -> None:
        if not self._known:
            raise DataError(f"{self._where}: there is no number in it")

    def decoded(self, numbers: pl.Series, batch: int) -> np.ndarray:
        return numbers.fill_null(np.nan).to_numpy()


class TimeColumn(BatchColumn):
    """Times, whole numbers or floats.

    Attributes:
        datetimes: whether they are datetimes, as microseconds.
        first, last: the lowest and the highest one.
    """

    def __init__(self) -> None:
        self._start: Column | None = None
        self._floats = False
        self._large: Column | None = None
        self.datetimes = False
        self.first = self.last = 0.0

    def add(self, column: Column) -> pl.Series:
        column = plain_text(column)
        if self._start is None:
            read = read_times(column)
            self._start = column.with_values(column.values.head(1))
            self.first, self.last = _ends(read)
        elif column.values.dtype == pl.String:
            # What text is read as follows from row 1.
            rows = np.concatenate([[0], np.asarray(column.rows)])
            values = pl.concat([self._start.values, column.values])
            read = read_times(replace(column, values=values, rows=rows))[1:]
        else:
            read = read_times(column)
        self.datetimes = read.dtype == pl.Datetime
        self._floats |= read.dtype == pl.Float64
        numbers = read.to_physical()
        if column.values.dtype == pl.String and numbers.dtype == pl.Int64 and self._large is None:
            self._large = _too_large_for_floats(column.with_values(numbers))
        low, high = _ends(numbers)
        self.first, self.last = min(self.first, low), max(self.last, high)
        return numbers

    def close(self) -> None:
        if self._floats and self._large is not None:
            read_times(self._large)

    def decoded(self, numbers: pl.Series, batch: int) -> np.ndarray:
        return numbers.to_numpy().astype(np.float64 if self._floats else np.int64, copy=False)


def _too_large_for_floats(column: Column) -> Column | None:
    """Those of whole numbers that would share a float with a neighbour, as floats."""
    places = (column.values.abs() >= _LARGEST_EXACT).arg_true()
    if not len(places):
        return None
    rows = np.asarray(range(len(column.values)) if column.rows is None else column.rows)
    values = column.values.gather(places).cast(pl.Float64)
    return replace(column, values=values, rows=rows[places.to_numpy()], whole=False)


def _ends(numbers: pl.Series) -> tuple[float, float]:
    found = numbers.to_physical()
    return found.min(), found.max()  # pyright: ignore[reportReturnType]


def _comparable(column: Column) -> bool:
    """Whether the values are of a type that columns of names and ids may have."""
    dtype = plain_text(column).values.dtype
    return dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Null)


def context_column(column: Column, kind: str | None, *, sparse: bool = False) -> BatchColumn:
    """How a column of the context is read.

    Args:
        column: its first batch.
        kind: "category" or "number"; None has it guessed. Text is kept as the distinct values that
            it has until all of it tells which of both it is.
        sparse: it may lack all of its values.
    """
    text = plain_text(column).values.dtype == pl.String
    if kind == "number" or (kind is None and not text and guess_kind(column) == "number"):
        return NumberColumn(lambda each: read_context(each, "number", sparse=True), sparse=sparse)
    return NameColumn(lambda each: read_context(each, kind, sparse=sparse))
