"""Data sets of RecTools as tables that a log is prepared from."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from rectools import Columns  # pyright: ignore
from rectools.dataset import (  # pyright: ignore[reportMissingImports]
    Dataset,
    DenseFeatures,
    SparseFeatures,
)
from rectools.dataset.features import DIRECT_FEATURE_VALUE  # pyright: ignore[reportMissingImports]

from blossomrec.data.vocabulary import as_ids
from blossomrec.errors import DataError


def event_table(dataset: Dataset) -> pl.DataFrame:
    """The interactions by their external ids: user_id, item_id, datetime and, unless all are 1,
    weight.

    Raises:
        DataError: an id is neither a whole number nor text; the message names it.
    """
    events = dataset.interactions.df
    columns = {
        name: id_series(id_map.external_ids, name).gather(events[name].to_numpy())
        for name, id_map in (
            (Columns.User, dataset.user_id_map),
            (Columns.Item, dataset.item_id_map),
        )
    }
    columns[Columns.Datetime] = pl.Series(events[Columns.Datetime].to_numpy("datetime64[ns]"))
    weights = events[Columns.Weight].to_numpy()
    if (weights != 1).any():
        columns[Columns.Weight] = pl.Series(weights)
    return pl.DataFrame(columns)


def id_series(ids: np.ndarray, what: str) -> pl.Series:
    """External ids as a column of whole numbers or of text.

    Raises:
        DataError: an id is neither, or there are both.
    """
    if ids.dtype.kind in "iu":
        return pl.Series(ids)
    listed = as_ids(ids, what)
    if len({type(one) for one in listed}) > 1:
        raise DataError(f"{what} holds whole numbers and texts: make all of them texts")
    return pl.Series(listed, dtype=pl.Int64 if listed and type(listed[0]) is int else pl.String)


def item_table(dataset: Dataset) -> tuple[pl.DataFrame, tuple[str, ...]] | None:
    """The features of items as a table with a row for each item, and COLUMN=KIND of its columns.

    Direct features are numbers, categorical ones lists of the categories that are not 0.
    """
    features = dataset.item_features
    if features is None:
        return None
    ids = id_series(dataset.item_id_map.external_ids, Columns.Item)
    columns = _dense(features) if isinstance(features, DenseFeatures) else _sparse(features)
    kinds = tuple(
        f"{name}={'number' if values.dtype == pl.Float32 else 'category'}"
        for name, values in columns.items()
    )
    if Columns.Item in columns:
        raise DataError(f"a feature of items is called {Columns.Item!r}, as their ids are")
    return pl.DataFrame({Columns.Item: ids.head(len(features)), **columns}), kinds


def _dense(features: DenseFeatures) -> dict[str, pl.Series]:
    values = np.asarray(features.values, np.float32)
    return {str(name): pl.Series(values[:, n]) for n, name in enumerate(features.names)}


def _sparse(features: SparseFeatures) -> dict[str, pl.Series]:
    by_name = dict[str, list[int]]()
    for place, (name, _) in enumerate(features.names):
        by_name.setdefault(str(name), []).append(place)
    matrix, found = features.values.tocsc(), dict[str, pl.Series]()
    for name, places in by_name.items():
        part = matrix[:, places]
        if features.names[places[0]][1] == DIRECT_FEATURE_VALUE:
            found[name] = pl.Series(part.toarray()[:, 0].astype(np.float32))
        else:
            found[name] = _categories(part.tocsr(), [features.names[n][1] for n in places])
    return found


def _categories(counts: Any, names: list[Any]) -> pl.Series:
    """Of each row the names of the columns that are not 0."""
    counts.eliminate_zeros()
    lists = [
        [str(names[place]) for place in counts.indices[start:end]]
        for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
    ]
    return pl.Series(lists, dtype=pl.List(pl.String))


def newest_share(dataset: Dataset) -> float:
    """The least share of the events, those last in time, with one whose user has earlier ones.

    Raises:
        DataError: no user has events at two times.
    """
    events = dataset.interactions.df
    times = events.groupby(Columns.User)[Columns.Datetime].agg(["min", "max"])
    followed = times.loc[times["min"] < times["max"], "max"]
    if followed.empty:
        raise DataError("no user of the data set has interactions at two times")
    return float((events[Columns.Datetime] >= followed.max()).mean())
