"""Tables of features of which rows are added, replaced and removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blossomrec.data.feature_rows import taken_rows
from blossomrec.data.features import Categories, FeatureTable, Titles
from blossomrec.data.growth.segment import FeatureRows
from blossomrec.data.windows import boundaries


def grown_table(
    base: FeatureTable,
    changes: Sequence[FeatureRows],
    num_rows: int,
    removed: np.ndarray | None = None,
) -> FeatureTable:
    """A table of ``num_rows`` rows: those of ``base`` and, in their place or after them, others.

    Rows that neither knows are missing in all columns. Names of categories keep their numbers, and
    new ones get the next; where rows are removed, names that no row has any more go with them.

    Args:
        changes: tables with the same columns, later ones over earlier ones.
        removed: rows that are left out, int64 [n]; rows after them move up.
    """
    starts = base.num_rows + boundaries(np.array([len(one.rows) for one in changes], np.int64))
    index = np.full(num_rows, -1)
    index[: base.num_rows] = np.arange(base.num_rows)
    for one, start in zip(changes, starts, strict=False):
        index[one.rows] = start + np.arange(len(one.rows))
    if removed is not None:
        index = np.delete(index, removed)
    grown = taken_rows([base, *(one.table for one in changes)], index)
    if removed is None:
        return grown
    features = {
        name: without_unused(each) if isinstance(each, Categories) else each
        for name, each in grown.items()
    }
    return FeatureTable(features, len(index))


def without_unused(feature: Categories) -> Categories:
    """Without the names that no row has; the others keep their order."""
    used = np.unique(feature.values)
    used = used[used > 0]
    numbers = np.zeros(feature.size, np.int32)
    numbers[used] = np.arange(1, len(used) + 1)
    names = Titles.of([feature.names[number - 1] for number in used.tolist()])
    return Categories(names, numbers[feature.values], feature.offsets)
