"""Metrics of one list as plain loops, and logs with tables of items and users to hold them to."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import polars as pl

from blossomrec.data.log import EventLog

GENRES = ("crime", "drama", "comedy", "opera", "news")


def log_with_tables(histories: list[list[int]], seed: int = 0) -> EventLog:
    """A log of these histories, with tables that do not know everything of everyone."""
    rng = np.random.default_rng(seed)
    events = [
        (user, item, time)
        for user, items in enumerate(histories)
        for time, item in enumerate(items)
    ]
    ids = sorted({item for _, item, _ in events})
    # Between none and three genres, a maker or none; of some no vector, of one nothing but zeros.
    genres = [sorted(set(rng.choice(GENRES, rng.integers(0, 4)).tolist())) for _ in ids]
    genres[0] = [GENRES[0]]
    vectors = [rng.normal(size=3).tolist() if rng.random() < 0.8 else None for _ in ids]
    vectors[0], vectors[-1] = [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "genre": genres,
            "maker_name": rng.choice(["north", "south", None], len(ids)).tolist(),
            "price": rng.random(len(ids)),
            "vector": vectors,
        },
        schema_overrides={
            "genre": pl.List(pl.String),
            "maker_name": pl.String,
            "vector": pl.List(pl.Float64),
        },
    )
    users = pl.DataFrame(
        {
            "user_id": range(len(histories)),
            "country": rng.choice(["de", "fr", "it", None], len(histories)).tolist(),
            "tags": [sorted(set(rng.choice(["a", "b"], 2).tolist())) for _ in histories],
            "age": rng.integers(18, 80, len(histories)),
        },
        schema_overrides={"country": pl.String},
    )
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    kinds = ("genre=category", "maker_name=category", "vector=vector")
    return EventLog.prepare(
        frame, items=items, users=users, item_kinds=kinds, user_kinds=("country=category",)
    )


def novelty(shown, trained):
    """trained: items that each user met in training, a list of lists."""
    users = [set(items) for items in trained if items]
    met = [max(1, sum(item in one for one in users)) for item in shown]
    return _mean([math.log2(len(users) / count) for count in met])


def serendipity(shown, targets, k, popular):
    """popular: what a recommendation of the most popular items shows this case, best first."""
    return _mean([item in targets and item not in popular[:k] for item in shown])


def most_popular(trained, left_out, num_items):
    """All items but those left out, by their training events, equal ones in order of item row."""
    events = [item for items in trained for item in items]
    rest = [item for item in range(num_items) if item not in left_out]
    return sorted(rest, key=lambda item: (-events.count(item), item))


def long_tail(shown, trained, num_items):
    events = [item for items in trained for item in items]
    head, reached = set(), 0
    for item in most_popular(trained, (), num_items):
        if reached >= 0.8 * len(events):
            break
        head.add(item)
        reached += events.count(item)
    return _mean([item not in head for item in shown])


def diversity(shown, vectors):
    """vectors: of every item, None where it is not known."""
    known = [vectors[item] for item in shown if vectors[item] is not None]
    cosines = [
        np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
        for one, other in combinations(known, 2)
    ]
    return 1 - _mean(cosines) if cosines else 0.0


def calibration(shown, history, categories, alpha=0.01):
    """categories: names of every item, a list of lists."""
    wanted, listed = _distribution(history, categories), _distribution(shown, categories)
    divergence = 0.0
    for name, share in wanted.items():
        smoothed = (1 - alpha) * listed.get(name, 0.0) + alpha * share
        divergence += share * math.log(share / smoothed)
    return divergence


def gini(exposure):
    """Mean difference of all pairs over twice the mean, for a sample of this size."""
    count, total = len(exposure), sum(exposure)
    if count < 2 or not total:
        return 0.0
    differences = sum(abs(one - other) for one in exposure for other in exposure)
    return differences / (2 * (count - 1) * total)


def one_hot(categories):
    """Vectors of ones and zeros by the names of each item; None without any."""
    names = sorted({name for each in categories for name in each})
    return [
        np.array([float(name in each) for name in names]) if each else None for each in categories
    ]


def _distribution(items, categories):
    found, known = {}, [item for item in items if categories[item]]
    for item in known:
        for name in categories[item]:
            part = 1 / len(categories[item]) / len(known)
            found[name] = found.get(name, 0.0) + part
    return found


def _mean(values):
    return sum(values) / len(values) if values else 0.0
