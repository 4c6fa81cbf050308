"""Tables of features of which rows are added, replaced and removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from blossomrec.data.features import Categories, Feature, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.growth.segment import FeatureRows
from blossomrec.data.windows import boundaries, gather_index


def grown_table(
    base: FeatureTable, changes: Sequence[FeatureRows], num_rows: int, removed: int | None = None
) -> FeatureTable:
    """A table of ``num_rows`` rows: those of ``base`` and, in their place or after them, others.

    Rows that neither knows are missing in all columns. Names of categories keep their numbers, and
    new ones get the next; where a row is removed, names that no row has any more go with it.

    Args:
        changes: tables with the same columns, later ones over earlier ones.
        removed: a row that is left out; rows after it move up.
    """
    # Parts stand one after another, then a row in which all is missing.
    starts = base.num_rows + boundaries(np.array([len(one.rows) for one in changes], np.int64))
    index = np.full(num_rows, starts[-1])
    index[: base.num_rows] = np.arange(base.num_rows)
    for one, start in zip(changes, starts, strict=False):
        index[one.rows] = start + np.arange(len(one.rows))
    if removed is not None:
        index = np.delete(index, removed)
    features = {}
    for name, feature in base.items():
        parts = [feature, *(one.table[name] for one in changes)]
        features[name] = _TAKEN[feature.kind](parts, index)
        if removed is not None and isinstance(features[name], Categories):
            features[name] = _without_unused(features[name])
    return FeatureTable(features, len(index))


def _taken_titles(parts: Sequence[Titles], index: np.ndarray) -> Titles:
    return Titles(*_taken_lists([(p.content, p.offsets) for p in parts], 0, index))


def _taken_categories(parts: Sequence[Categories], index: np.ndarray) -> Categories:
    texts = [[part.names[n] for n in range(len(part.names))] for part in parts]
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
    starts = boundaries(lengths)[index]
    lengths = lengths[index]
    return values[gather_index(starts, lengths)], boundaries(lengths)


def _without_unused(feature: Categories) -> Categories:
    used = np.unique(feature.values)
    used = used[used > 0]
    numbers = np.zeros(feature.size, np.int32)
    numbers[used] = np.arange(1, len(used) + 1)
    names = Titles.of([feature.names[number - 1] for number in used.tolist()])
    return Categories(names, numbers[feature.values], feature.offsets)
