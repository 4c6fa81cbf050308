"""Limits and diversity against the plainest program, over lists as deep as needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blossomrec.data.batch import pack
from blossomrec.data.features import Categories, Titles
from blossomrec.evaluation import scoring
from blossomrec.evaluation.top_k import Seen, TopK
from blossomrec.rules.choice import POOL, Limit, RuledChoice
from ranking_oracle import TableScorer, recommended


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(scoring, "GROUP", 4)
    monkeypatch.setattr(scoring, "TILE_ITEMS", 8)
    monkeypatch.setattr(scoring, "TILE_ROWS", 2)


def categories(lists):
    """A column of categories from a list of numbers for each item; none is unknown."""
    lists = [each or [0] for each in lists]
    names = Titles.of([f"c{number}" for number in range(1, 10)])
    offsets = np.cumsum([0, *map(len, lists)])
    return Categories(names, np.array(sum(lists, []), np.int32), offsets)  # noqa: RUF017


def greedy(order, limits, k):
    """Items in order, each that no limit forbids."""
    chosen = []
    for item in order:
        fits = all(
            sum(number in lists[other] for other in chosen) < count
            for lists, count in limits
            for number in lists[item]
        )
        if fits and len(chosen) < k:
            chosen.append(item)
    return chosen


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_limits_hold_and_nothing_better_is_passed_over(small_tiles, data):
    num_items, k = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    table = rng.integers(-3, 3, (num_items, num_items))
    one = st.lists(st.integers(1, 3), max_size=2, unique=True)
    columns = [
        ([data.draw(one) for _ in range(num_items)], data.draw(st.integers(1, 3)))
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    limits = tuple(Limit(categories(lists), count) for lists, count in columns)
    histories = [rng.integers(0, num_items, n) for n in rng.integers(1, 6, 5)]
    boosts = rng.integers(-2, 3, num_items).astype(np.float32)
    allowed = np.flatnonzero(rng.random(num_items) < 0.8)
    top = TopK(
        TableScorer(table), k, 5, boosts=boosts, items=allowed, choice=RuledChoice(limits),
        score_elements=data.draw(st.sampled_from([1, 100, 10_000])),
    )  # fmt: skip
    for _ in range(2):
        rows, scores = top.of(pack(histories), Seen.of(histories))
        for number, history in enumerate(histories):
            own = table[history[-1]] + boosts
            left_out = set(range(num_items)) - set(allowed.tolist()) | set(history.tolist())
            wanted = greedy(recommended(own, left_out, num_items), columns, k)
            missing = k - len(wanted)
            assert rows[number].tolist() == wanted + [-1] * missing
            assert scores[number, : len(wanted)].tolist() == own[wanted].tolist()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
def test_diversity_is_maximal_marginal_relevance(seed, diversity, limited):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 30)), int(rng.integers(1, 8))
    vectors = rng.normal(size=(100, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, scores = rng.permutation(100)[:n], -np.sort(-rng.normal(size=n).astype(np.float32))
    lists = [[int(each)] for each in rng.integers(1, 4, 100)]
    limits = [(lists, 2)] if limited else []
    choice = RuledChoice(
        tuple(Limit(categories(each), count) for each, count in limits),
        diversity,
        vectors.__getitem__,
    )
    found = choice.choose(rows, scores, k)
    wanted = []
    spread = float(scores[0] - scores[-1]) or 1.0
    while len(wanted) < k:
        best, chosen = -np.inf, None
        for place in range(n):
            if place in wanted or place not in greedy([*wanted, place], _of(limits, rows), n):
                continue
            alike = max((float(vectors[rows[place]] @ vectors[rows[w]]) for w in wanted), default=0)
            relevance = float(scores[place] - scores[-1]) / spread
            value = (1 - diversity) * relevance - diversity * alike
            if value > best + 1e-6:
                best, chosen = value, place
        if chosen is None:
            break
        wanted.append(chosen)
    assert found.tolist() == wanted


def _of(limits, rows):
    """Limits by places in the list in place of item rows."""
    return [([lists[row] for row in rows], count) for lists, count in limits]


def test_the_pool_grows_until_enough_can_be_chosen():
    """The best hundred items are all of one category."""
    num_items, k = 400, 3
    table = np.tile(-np.arange(num_items), (num_items, 1))
    lists = [[1] if item < 100 else [2] if item < 300 else [] for item in range(num_items)]
    vectors = torch.nn.functional.normalize(torch.eye(num_items), dim=1).numpy()
    for diversity in (0.0, 0.3):
        given = vectors.__getitem__ if diversity else None
        choice = RuledChoice((Limit(categories(lists), 1),), diversity, given)
        assert choice.pool(k) <= POOL * k < 100
        rows, _ = TopK(TableScorer(table), k, 1, choice=choice).of(pack([[7]]))
        assert rows.tolist() == [[0, 100, 300]]
