"""A server ranks by vectors in 8 bits where it can, and answers as by all scores."""

import numpy as np
import pytest
import torch

from blossomrec.evaluation import quantised_top_k, scoring
from blossomrec.models.building import build_model
from blossomrec.models.fused import quantised_items
from blossomrec.rules.catalogue import ItemRules
from blossomrec.serving.engine import ranking
from blossomrec.serving.engine.ranking import Choice, Ranking
from small_models import small_config

MISSING = quantised_items.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ITEMS = quantised_top_k.LEAST_TILES * scoring.TILE_ITEMS + 100
RNG = np.random.default_rng(0)
ALLOWED = RNG.random(ITEMS) < 0.5
BOOSTS = RNG.normal(size=ITEMS).astype(np.float32)
CHOICES = [
    Choice(10),
    Choice(3, [np.arange(500, 0, -1), np.array([7, 70])]),
    Choice(40, rules=ItemRules(allowed=ALLOWED)),
    Choice(10, [np.arange(0, ITEMS, 2)], rules=ItemRules(allowed=ALLOWED, boosts=BOOSTS)),
    Choice(10, rules=ItemRules(boosts=-BOOSTS)),
    Choice(5, rules=ItemRules(allowed=np.arange(ITEMS) < 3)),
]


@pytest.fixture(scope="module")
def model():
    return build_model(small_config(), ITEMS).eval()


@pytest.fixture
def whole(monkeypatch):
    """Calls that score all items."""
    found, original = [], scoring.ScoreBlock.fill

    def counted(self, queries):
        found.append(len(queries))
        return original(self, queries)

    monkeypatch.setattr(scoring.ScoreBlock, "fill", counted)
    return found


def queries(n):
    return scoring.Queries(torch.randn(n, 16, generator=torch.Generator().manual_seed(1)))


def same(first, second):
    return all(
        np.array_equal(one, other)
        for pair in zip(first, second, strict=True)
        for one, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("off", [[], [3], range(0, ITEMS, 3)])
def test_answers_are_those_by_all_scores(off, model, monkeypatch, whole):
    ranked = Ranking(model)
    ranked.switch_off(np.array(off, dtype=np.int64))
    some, rows = queries(len(CHOICES)), np.array([5, ITEMS - 1])
    found = ranked.best(some, CHOICES)
    assert whole == []
    monkeypatch.setattr(quantised_items, "WORTH", 0)
    close = ranked.similar(rows, 10)
    assert whole == []
    monkeypatch.setattr(ranking, "quantised_for", lambda *_: None)
    assert same(found, ranked.best(some, CHOICES))
    assert same(close, ranked.similar(rows, 10))
    assert whole == [len(CHOICES), 2]
    assert [len(listed) for listed, _ in found][:5] == [10, 3, 40, 10, 10]


def test_items_that_are_named_are_ranked_by_all_scores(model, whole):
    choices = [Choice(10), Choice(2, among=np.array([4, 9, 2]))]
    (listed, _), (named, _) = Ranking(model).best(queries(2), choices)
    assert whole == [2]
    assert len(listed) == 10 and set(named.tolist()) < {2, 4, 9}
