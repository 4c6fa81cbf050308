"""Rows of tables of features as another table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from blossomrec.data.features import Categories, Feature, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.windows import boundaries, gather_index


def taken_rows(tables: Sequence[FeatureTable], index: np.ndarray) -> FeatureTable:
    """A table of R rows of tables that stand one below the other.

    Names of categories keep their numbers, and new ones get the next.

    Args:
        tables: with the same columns.
        index: int64 [R], which row of all of them each row is; -1 for one that is missing in all
            columns.

    Example:
        >>> taken_rows([table], np.array([2, -1, 0])).num_rows
        3
    """
    # Behind all parts stands a row in which all is missing, so that -1 finds it.
    features = {
        name: _TAKEN[first.kind]([table[name] for table in tables], index)
        for name, first in tables[0].items()
    }
    return FeatureTable(features, len(index))


def _taken_titles(parts: Sequence[Titles], index: np.ndarray) -> Titles:
    return Titles(*_taken_lists([(p.content, p.offsets) for p in parts], 0, index))


def _taken_categories(parts: Sequence[Categories], index: np.ndarray) -> Categories:
    texts = [part.names.all() for part in parts]
    numbers = {name: n for n, name in enumerate(dict.fromkeys(chain(*texts)), 1)}
    lists = []
    for part, names in zip(parts, texts, strict=True):
        known = np.array([0, *map(numbers.__getitem__, names)], np.int32)
        lists.append((known[part.values], part.offsets))
    return Categories(Titles.of(list(numbers)), *_taken_lists(lists, 1, index))


def _taken_numbers(parts: Sequence[Numbers], index: np.ndarray) -> Numbers:
    missing = np.full(1, np.nan, np.float32)
    return Numbers(np.concatenate([*(part.values for part in parts), missing])[index])


def _taken_vectors(parts: Sequence[Vectors], index: np.ndarray) -> Vectors:
    missing = np.full((1, parts[0].values.shape[1]), np.nan, np.float32)
    return Vectors(np.concatenate([*(part.values for part in parts), missing])[index])


_TAKEN: dict[str, Callable[[Any, np.ndarray], Feature]] = {
    Titles.kind: _taken_titles,
    Categories.kind: _taken_categories,
    Numbers.kind: _taken_numbers,
    Vectors.kind: _taken_vectors,
}


def _taken_lists(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], missing: int, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of the rows at ``index`` of lists one after another.

    missing: length of the list, all zeros, that stands after the last one.
    """
    dtype = parts[0][0].dtype
    values = np.concatenate([*(part for part, _ in parts), np.zeros(missing, dtype)])
    lengths = np.concatenate([*(np.diff(offsets) for _, offsets in parts), [missing]])
    starts = boundaries(lengths)[:-1][index]
    lengths = lengths[index]
    return values[gather_index(starts, lengths)], boundaries(lengths)
