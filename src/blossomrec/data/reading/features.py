"""Tables of items or users: kinds of columns, values checked, one row for each id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.features import Categories, Feature, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.reading.columns import Column, plain_text
from blossomrec.data.reading.declared import declared_kind, split_sequence
from blossomrec.data.reading.ids import read_ids
from blossomrec.data.reading.kinds import KINDS, READERS, warn_of_strays
from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.reading.tables import describe, read_all
from blossomrec.errors import ConfigError, DataError


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
    source: Any,
    id_column: str,
    kinds: Mapping[str, str],
    options: ReadOptions,
    *,
    only: bool = False,
) -> FeatureColumns:
    """Read a table of items or users, all of its columns.

    Args:
        source: as of ``read_events``.
        id_column: name of the column of ids.
        kinds: of columns that are not to be guessed: "title", "category", "number", "vector", or
            "none" for one that is left out.
        options: how text files and ids are read.
        only: the columns in ``kinds`` are those that are read, in their order.

    Raises:
        DataError: naming table, column, row (from 1) and value.
        ConfigError: a kind is unknown or of a column that is not there.
    """
    name = describe(source)
    table, textual, declared = read_all(source, options)
    if id_column not in table.columns:
        raise DataError(f"{name} has no column {id_column!r}: it has {', '.join(table.columns)}")
    if only:
        for column in kinds:
            if column not in table.columns:
                raise DataError(
                    f"{name} has no column {column!r}, which the log's table has: it has "
                    f"{', '.join(table.columns)}"
                )
        table = table.select(id_column, *kinds)
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
        told = declared.get(column)
        kind = kinds.get(column) or declared_kind(one, told)
        if kind in ("category", "none") and one.textual and not (told or column in kinds):
            warn_of_strays(one, kind, "item_kinds and user_kinds of prepare decide")
        if kind != "none":
            one = split_sequence(one, told, kind)
            columns[column], found[column] = READERS[kind](one), kind
    return FeatureColumns(name, ids, columns, found)


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


_BUILDERS = {
    "title": _titles,
    "category": _categories,
    "number": _numbers,
    "vector": _vectors,
}
