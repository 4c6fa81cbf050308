"""Tables of items or users: kinds of columns, values checked, one row for each id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.features import Categories, Feature, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.reading.columns import Column, plain_text
from blossomrec.data.reading.ids import read_ids
from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.reading.tables import describe, read_all
from blossomrec.errors import ConfigError, DataError

KINDS = ("title", "category", "number", "vector", "none")
# Text between which a cell lists several categories.
SEPARATOR = "|"
# Text of which more than half of the rows differ is no category, and of this many names none is.
MAX_NAMES, MAX_SHARE = 100_000, 0.5


@dataclass(frozen=True)
class FeatureColumns:
    """A checked table: ids, each once, and of each column its kind and its values.

    Attributes:
        source: what errors call the table.
        ids: as :func:`read_ids` gives them.
        columns: cleaned values by name: String, List(String), Float32 or List(Float32).
        kinds: of the columns, by name.
    """

    source: str
    ids: pl.Series
    columns: dict[str, pl.Series]
    kinds: dict[str, str]

    def aligned(self, ids: pl.Series) -> FeatureTable:
        """The features of ``ids``, in their order; missing where the table does not know one."""
        known = self.ids.cast(pl.String)
        wanted = ids.cast(pl.String)
        places = wanted.replace_strict(
            known, pl.Series(np.arange(len(known))), default=None, return_dtype=pl.Int64
        )
        features = {
            name: _BUILDERS[self.kinds[name]](values.gather(places))
            for name, values in self.columns.items()
        }
        return FeatureTable(features, len(ids))


def read_features(
    source: Any, id_column: str, kinds: Mapping[str, str], options: ReadOptions
) -> FeatureColumns:
    """Read a table of items or users, all of its columns.

    Args:
        source: as of ``read_events``.
        id_column: name of the column of ids.
        kinds: of columns that are not to be guessed: "title", "category", "number", "vector", or
            "none" for one that is left out.
        options: how text files and ids are read.

    Raises:
        DataError: naming table, column, row (from 1) and value.
        ConfigError: a kind is unknown or of a column that is not there.
    """
    name = describe(source)
    table, textual = read_all(source, options)
    if id_column not in table.columns:
        raise DataError(f"{name} has no column {id_column!r}: it has {', '.join(table.columns)}")
    for column, kind in kinds.items():
        if column not in table.columns or column == id_column:
            raise ConfigError(f"{name} has no column {column!r}: its kind was given as {kind!r}")
        if kind not in KINDS:
            raise ConfigError(
                f"the kind of {column!r} is {kind!r}: choose one of {', '.join(KINDS)}"
            )
    if not table.height:
        raise DataError(f"{name} has columns, but no rows")
    given = Column(name, id_column, table[id_column], textual)
    ids = read_ids(given, normalize=options.normalize_ids)
    given.refuse(~ids.is_first_distinct(), "stands in an earlier row too")
    columns, found = {}, {}
    for column in table.columns:
        if column == id_column:
            continue
        one = plain_text(Column(name, column, table[column], textual))
        kind = kinds.get(column) or guess_kind(one)
        if kind != "none":
            columns[column], found[column] = _READERS[kind](one), kind
    return FeatureColumns(name, ids, columns, found)


def guess_kind(column: Column) -> str:
    """What a column holds, told by its name, its type and how often its values repeat."""
    values, name = column.values, column.name.lower()
    dtype = values.dtype
    if isinstance(dtype, (pl.List, pl.Array)):
        return "category" if dtype.inner in (pl.String, pl.Categorical) else "vector"  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == pl.Boolean:
        return "category"
    if dtype == pl.String:
        if name == "title" or name.endswith("_title"):
            return "title"
        if column.textual and _as_numbers(values).null_count() == values.null_count():
            return "category" if name.endswith("_id") else "number"
        few = values.n_unique() <= max(2, min(MAX_NAMES, int(MAX_SHARE * len(values))))
        return "category" if few or values.str.contains(SEPARATOR, literal=True).any() else "none"
    if dtype.is_numeric():
        return "category" if name.endswith("_id") else "number"
    return "number" if dtype in (pl.Datetime, pl.Date) else "none"


def _read_titles(column: Column) -> pl.Series:
    if column.values.dtype != pl.String:
        column.refuse_type("texts")
    return column.values


def _read_categories(column: Column) -> pl.Series:
    """Lists of names, without blanks and repeats."""
    values = column.values
    if isinstance(values.dtype, (pl.List, pl.Array)):
        lists = values.cast(pl.List(pl.String))
    elif values.dtype == pl.String:
        lists = values.str.split(SEPARATOR)
    elif values.dtype.is_integer() or values.dtype == pl.Boolean:
        lists = values.cast(pl.String).str.split(SEPARATOR)
    else:
        column.refuse_type("texts, integers or lists of texts")
    stripped = lists.list.eval(pl.element().str.strip_chars())
    kept = stripped.list.eval(
        pl.element().filter(pl.element().is_not_null() & (pl.element() != ""))
    )
    return kept.list.unique(maintain_order=True)


def _read_numbers(column: Column) -> pl.Series:
    values = column.values
    if values.dtype in (pl.Datetime, pl.Date):
        values = values.cast(pl.Datetime("us")).to_physical() / 86_400e6
    elif values.dtype == pl.String:
        numbers = _as_numbers(values)
        column.refuse(numbers.is_null() & values.is_not_null() & (values != ""), "is not a number")
        values = numbers
    elif not values.dtype.is_numeric() and values.dtype != pl.Boolean:
        column.refuse_type("numbers")
    numbers = values.cast(pl.Float32)
    column.refuse(numbers.is_not_null() & ~numbers.is_finite(), "is not finite in 32 bits")
    return numbers


def _read_vectors(column: Column) -> pl.Series:
    values = column.values
    if not isinstance(values.dtype, (pl.List, pl.Array)):
        column.refuse_type("lists of numbers")
    try:
        lists = values.cast(pl.List(pl.Float32))
    except pl.exceptions.PolarsError:
        column.refuse_type("lists of numbers")
    lengths = lists.list.len()
    first = lengths.drop_nulls()
    if not len(first) or not first[0]:
        raise DataError(f"{column.source}, column {column.name!r}: there is no vector in it")
    column.refuse(lengths != first[0], f"has another length than the first vector, {first[0]}")
    finite = lists.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    column.refuse(lists.is_not_null() & ~finite, "is not finite in 32 bits")
    return lists


def _as_numbers(values: pl.Series) -> pl.Series:
    return values.replace("", None).cast(pl.Float64, strict=False)


def _titles(values: pl.Series) -> Feature:
    return Titles.of(values.fill_null("").to_list())


def _categories(values: pl.Series) -> Feature:
    values = values.fill_null([])
    counts = (
        values.explode()
        .drop_nulls()
        .value_counts()
        .sort(["count", values.name], descending=[True, False])
    )
    names = counts[values.name]
    lengths = values.list.len().to_numpy()
    listed = values.zip_with(values.list.len() > 0, pl.Series([[""]], dtype=pl.List(pl.String)))
    known = pl.Series(np.arange(1, len(names) + 1, dtype=np.int32))
    numbers = listed.explode().replace_strict(names, known, default=0, return_dtype=pl.Int32)
    offsets = np.concatenate([[0], np.maximum(lengths, 1).cumsum()]).astype(np.int64)
    return Categories(Titles.of(names.to_list()), numbers.to_numpy(), offsets)


def _numbers(values: pl.Series) -> Feature:
    return Numbers(values.fill_null(np.nan).to_numpy().astype(np.float32))


def _vectors(values: pl.Series) -> Feature:
    size = int(values.list.len().drop_nulls()[0]) if values.null_count() < len(values) else 1
    there = values.is_not_null().to_numpy()
    found = np.full((len(values), size), np.nan, np.float32)
    found[there] = values.drop_nulls().explode().to_numpy().reshape(-1, size)
    return Vectors(found)


_READERS = {
    "title": _read_titles,
    "category": _read_categories,
    "number": _read_numbers,
    "vector": _read_vectors,
}
_BUILDERS = {
    "title": _titles,
    "category": _categories,
    "number": _numbers,
    "vector": _vectors,
}


def parse_kinds(given: Sequence[str]) -> dict[str, str]:
    """Kinds by column from words ``COLUMN=KIND``, as the command line takes them.

    Raises:
        ConfigError: a word is none.
    """
    kinds = {}
    for word in given:
        name, _, kind = word.rpartition("=")
        if not name or kind not in KINDS:
            choices = ", ".join(KINDS)
            raise ConfigError(f"{word!r} is not COLUMN=KIND, where KIND is one of {choices}")
        kinds[name] = kind
    return kinds
