"""A server ranks by vectors in 8 bits where it can, and answers as by all scores."""

from functools import cache

import numpy as np
import pytest
import torch

from blossomrec.errors import TrainingError
from blossomrec.evaluation import quantised_top_k, scoring
from blossomrec.models.building import build_model
from blossomrec.models.fused import quantised_items
from blossomrec.rules.catalogue import ItemRules
from blossomrec.serving.engine.service import Service
from blossomrec.serving.stores import store_opener
from blossomrec.serving.version import ranking
from blossomrec.serving.version.ranking import Choice, Ranking
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
def in_the_engine(model):
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(quantised_items, "WORTH", 0)


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


@pytest.mark.usefixtures("in_the_engine")
@pytest.mark.parametrize("off", [[], [3], range(0, ITEMS, 3)])
def test_answers_are_those_by_all_scores(off, model, monkeypatch, whole):
    ranked = Ranking(model)
    ranked.switch_off(np.array(off, dtype=np.int64))
    some, rows = queries(len(CHOICES)), np.array([5, ITEMS - 1])
    found, close = ranked.best(some, CHOICES), ranked.similar(rows, 10)
    # Where the matrix library sums in an order that depends on the place, all scores are made.
    tiles = len(CHOICES), 2
    if all(quantised_top_k._places_do_not_matter(model.output_weight(), n) for n in tiles):
        assert whole == []
    whole.clear()
    monkeypatch.setattr(ranking, "quantised_for", lambda *_: None)
    assert same(found, ranked.best(some, CHOICES))
    assert same(close, ranked.similar(rows, 10))
    assert whole == [*tiles]
    assert [len(listed) for listed, _ in found][:5] == [10, 3, 40, 10, 10]


@pytest.mark.usefixtures("in_the_engine")
def test_items_that_are_named_are_ranked_by_all_scores(model, whole):
    choices = [Choice(10), Choice(2, among=np.array([4, 9, 2]))]
    (listed, _), (named, _) = Ranking(model).best(queries(2), choices)
    assert whole == [2]
    assert len(listed) == 10 and set(named.tolist()) < {2, 4, 9}


@pytest.mark.usefixtures("in_the_engine")
@pytest.mark.parametrize("boost", [np.inf, np.nan])
def test_boosts_that_are_not_finite_are_added_to_all_scores(boost, model, whole):
    boosts = BOOSTS.copy()
    boosts[3::10_000] = boost
    choices = [Choice(10), Choice(10, rules=ItemRules(boosts=boosts))]
    if np.isnan(boost):
        with pytest.raises(TrainingError, match="not a number"):
            Ranking(model).best(queries(2), choices)
    else:
        _, (listed, _) = Ranking(model).best(queries(2), choices)
        assert listed[:7].tolist() == list(range(3, ITEMS, 10_000))
    assert whole == [2]


def test_no_request_waits_for_what_a_server_can_do_before(run, tmp_path, monkeypatch, whole):
    """The copy is made, and whether it may be used is known, when it has started."""
    # So that the tiny catalogue of 80 items is one of several tiles.
    monkeypatch.setattr(scoring, "TILE_ITEMS", 16)
    known = cache(quantised_top_k._same_anywhere.__wrapped__)
    monkeypatch.setattr(quantised_top_k, "_same_anywhere", known)
    before = torch.get_num_threads()
    service = Service(run, store_opener(str(tmp_path / "events.db"))[0], threads=before + 1)

    def first_request():
        misses = known.cache_info().misses
        (best,) = service.version.ranking.best(queries(1), [Choice(3)])
        return best[0], known.cache_info().misses - misses

    try:
        assert service.version.model.quantised.nbytes > 0
        listed, settled = service._engine.call(first_request).result()
        assert len(listed) == 3 and settled == 0 and known.cache_info().hits == 1
    finally:
        service.close()
        torch.set_num_threads(before)
