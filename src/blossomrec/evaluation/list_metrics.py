"""Metrics of what is recommended, besides whether it was right.

Of the list of each case, and so means over users, with intervals:

- ``novelty@k``: mean self-information log2(users / users who met the item in training) of the
  first k items (Zhou et al., 2010). An item that nobody met counts as one that a single user did.
- ``serendipity@k``: share of the first k items that are targets and would not be among the first k
  if the most popular items in training were recommended (Ge, Delgado-Battenfeld and Jannach, 2010).
- ``diversity:COLUMN@k``: one minus the mean cosine of all pairs of the first k items (Ziegler et
  al., 2005), by a column of vectors or of categories, these as vectors of ones and zeros.
- ``long-tail@k``: share of the first k items outside the smallest set of items that has 80 % of the
  training events (Abdollahpouri, Burke and Mobasher, 2019).
- ``calibration:COLUMN@k``: Kullback-Leibler divergence, in nats, of the categories of the history
  from those of the first k items, smoothed by alpha 0.01 (Steck, 2018); 0 is best.

Of the lists of all cases together:

- ``gini@k``: inequality of how often the items of the catalogue stand among the first k
  (Gunawardana and Shani, 2015): 0 where all do equally often, 1 where all lists show a single item.

``LIST_METRICS`` and ``CATALOGUE_METRICS`` hold them by name, and those of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blossomrec.data.features import Categories, Feature, Vectors
from blossomrec.evaluation.lists import Lists, category_sums, shares
from blossomrec.registry import Registry

# Of lists of m cases and k: float64 [m].
ListMetric = Callable[[Lists, int], np.ndarray]
# Of how often each item stands among the first k of a list, int64 [I]: a number.
CatalogueMetric = Callable[[np.ndarray], float]

LIST_METRICS: Registry[ListMetric] = Registry(
    "metric of lists",
    "blossomrec.list_metrics",
    {
        "novelty": "blossomrec.evaluation.list_metrics:novelty",
        "serendipity": "blossomrec.evaluation.list_metrics:serendipity",
        "diversity": "blossomrec.evaluation.list_metrics:diversity",
        "long-tail": "blossomrec.evaluation.list_metrics:long_tail",
        "calibration": "blossomrec.evaluation.list_metrics:calibration",
    },
)
CATALOGUE_METRICS: Registry[CatalogueMetric] = Registry(
    "metric of the catalogue",
    "blossomrec.catalogue_metrics",
    {"gini": "blossomrec.evaluation.list_metrics:gini"},
)

# Share of the history's distribution in the smoothed one of a list (Steck, 2018).
ALPHA = 0.01
# Numbers of vectors that are held at a time.
VECTOR_ELEMENTS = 1 << 21


def by_column(*kinds: type[Feature]) -> Callable[[Any], Any]:
    """Mark a metric of lists as one that is asked for by a column of the item table.

    Example:
        >>> @by_column(Numbers)
        ... def price(lists, k):
        ...     return lists.mean(lists.column.values[lists.top], k)
    """

    def mark(metric: Any) -> Any:
        metric.columns = kinds
        return metric

    return mark


def novelty(lists: Lists, k: int) -> np.ndarray:
    """Mean self-information of the first k items by the users who met them in training, [m]."""
    training = lists.training
    met = np.maximum(1, training.users[lists.top])
    return lists.mean(np.log2(training.num_users / met), k)


def serendipity(lists: Lists, k: int) -> np.ndarray:
    """Share of the first k items that are targets and no popular recommendation, [m]."""
    return lists.mean(lists.relevant & (lists.popular_places >= k), k)


def long_tail(lists: Lists, k: int) -> np.ndarray:
    """Share of the first k items that are outside the head of the catalogue, [m]."""
    return lists.mean(lists.training.tail[lists.top], k)


@by_column(Categories, Vectors)
def diversity(lists: Lists, k: int) -> np.ndarray:
    """One minus the mean cosine of the pairs of the first k items, [m].

    Items of which nothing is known are left out; 0 where fewer than two are left.
    """
    of_kind = _summed_categories if isinstance(lists.column, Categories) else _summed_vectors
    squares, known = of_kind(lists, k)
    # The square of a sum of n unit vectors is n and twice the cosines of all pairs.
    cosine = (squares - known) / np.maximum(1, known * (known - 1))
    return np.where(known > 1, 1 - cosine, 0.0)


def _summed_categories(lists: Lists, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Square of the sum of the unit vectors of the first k items, and how many they are: [m]."""
    column, pairs = lists.column, lists.first(k)
    assert isinstance(column, Categories)
    keys, sums, known = category_sums(column, pairs, norm=2)
    squares = np.bincount(keys // column.size, sums**2, minlength=len(lists.top))
    return squares, np.bincount(pairs.cases[known], minlength=len(lists.top))


def _summed_vectors(lists: Lists, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by a column of vectors; those of zeros alone have no direction and are left out."""
    column, size = lists.column, len(lists.top)
    assert isinstance(column, Vectors)
    squares, known = np.zeros(size), np.zeros(size, dtype=np.int64)
    step = max(1, VECTOR_ELEMENTS // (k * column.values.shape[1]))
    for start in range(0, size, step):
        top = lists.top[start : start + step, :k]
        vectors = column.values[top].astype(float)  # [n, k, d]
        lengths = np.linalg.norm(vectors, axis=2)
        there = (top >= 0) & (lengths > 0)  # not where a length is NaN
        vectors[~there] = 0
        vectors /= np.where(there, lengths, 1)[:, :, None]
        squares[start : start + step] = (vectors.sum(1) ** 2).sum(1)
        known[start : start + step] = there.sum(1)
    return squares, known


@by_column(Categories)
def calibration(lists: Lists, k: int) -> np.ndarray:
    """Divergence of the categories of the history from those of the first k items, [m].

    It is log(1 / alpha) where no category of the list is known, and 0 where none of the history is.
    """
    column = lists.column
    assert isinstance(column, Categories)
    keys, wanted = lists.history_shares
    listed_keys, listed = shares(column, lists.first(k))
    # A number that is in no history ends the keys, so that each search finds one.
    at = np.searchsorted(listed_keys, keys)
    found = np.append(listed_keys, -1)[at] == keys
    smoothed = (1 - ALPHA) * np.where(found, np.append(listed, 0)[at], 0) + ALPHA * wanted
    terms = wanted * np.log(wanted / smoothed)
    return np.bincount(keys // column.size, terms, minlength=len(lists.top))


def gini(exposure: np.ndarray) -> float:
    """Gini coefficient of how often each item is shown; 0 where there is a single item or none."""
    count, total = len(exposure), int(exposure.sum())
    if count < 2 or not total:
        return 0.0
    places = 2 * np.arange(1, count + 1) - count - 1
    return float((places * np.sort(exposure)).sum() / ((count - 1) * total))
