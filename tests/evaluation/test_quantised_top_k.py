"""The best items by a copy of the vectors in 8 bits, bit for bit those by all scores in float32."""

import copy
from threading import Thread

import numpy as np
import pytest
import torch

from blossomrec.data.batch import pack
from blossomrec.errors import TrainingError
from blossomrec.evaluation import quantised_top_k, scoring
from blossomrec.evaluation.top_k import Seen, TopK
from blossomrec.models.building import build_model
from blossomrec.models.fused import quantised_items
from blossomrec.models.fused.quantised_items import KeptCopy, QuantisedItems
from small_models import small_config

MISSING = quantised_items.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

WHOLE = quantised_top_k.LEAST_TILES * scoring.TILE_ITEMS
ITEMS = WHOLE + 777


class Products:
    """Scores by products; the last item of a history is the row of its query."""

    max_len, inputs = 4, ("items",)

    def __init__(self, vectors, states):
        self.num_items, self.vectors, self.states = len(vectors), vectors, states

    def queries(self, batch):
        return self.states[batch.items[batch.last_rows]]

    def score_vectors(self):
        return self.vectors

    def scores(self, queries, start, stop):
        return queries @ self.vectors[start:stop].T


class Quantised(Products):
    def __init__(self, vectors, states):
        super().__init__(vectors, states)
        self.quantised = KeptCopy()


@pytest.fixture
def filled(monkeypatch):
    """How many queries had all items scored."""
    found, original = [], scoring.ScoreBlock.fill

    def counted(self, queries):
        found.append(len(queries))
        return original(self, queries)

    monkeypatch.setattr(scoring.ScoreBlock, "fill", counted)
    return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(quantised_items, "WORTH", 0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best(scorer, k, *, seen=None, **options):
    n = len(scorer.states)
    top = TopK(scorer, k, n, **options)
    return top.of(pack([np.array([row]) for row in range(n)]), seen)


@pytest.fixture
def check(filled):
    """Both ways give the same, bit for bit, and the copy is used, or all scores are made."""

    def checked(vectors, states, k, *, used=True, **options):
        scorer, users = Quantised(vectors, states), len(states)
        # Else the copy is used for some, or nobody.
        known = not used or places_do_not_matter(vectors, users)
        expected = best(Products(vectors, states), k, **options)
        for time in (1, 2):
            rows, scores = best(scorer, k, **options)
            assert np.array_equal(rows, expected[0])
            assert np.array_equal(scores.view(np.int32), expected[1].view(np.int32))
            assert not known or sum(filled) == users * (1 if used else 1 + time)
        return scorer

    return checked


def places_do_not_matter(vectors, users):
    """Where bits of a score depend on where its item stands, all scores are made."""
    heights = {min(users, scoring.TILE_ROWS), users % scoring.TILE_ROWS} - {0}
    return all(quantised_top_k._places_do_not_matter(vectors, each) for each in heights)


def skip_where_places_matter(vectors, users):
    """For what is asked of the copy alone."""
    if not places_do_not_matter(vectors, users):
        pytest.skip("the matrix library sums in an order that depends on the place")


def some_seen(users, most=300):
    rng = np.random.default_rng(users)
    return Seen.of([rng.integers(0, ITEMS, rng.integers(0, most)) for _ in range(users)])


@pytest.mark.parametrize(
    "users, size, k", [(1, 8, 10), (3, 17, 1), (35, 64, 100), (70, 32, 10), (5, 1, 3), (2, 600, 7)]
)
@pytest.mark.parametrize("filtered", [False, True])
def test_lists_are_those_of_all_scores(users, size, k, filtered, check):
    options = {}
    if filtered:
        rng = np.random.default_rng(1)
        boosts = rng.normal(size=ITEMS).astype(np.float32)
        items = np.unique(rng.integers(0, ITEMS, ITEMS))
        options = {"items": items, "boosts": boosts, "seen": some_seen(users)}
    check(random(ITEMS, size), random(users, size, seed=1), k, **options)


def of_unlike_norms(x):
    return x * torch.rand(len(x), 1, generator=torch.Generator().manual_seed(2)) ** -2


def with_huge_rows(x):
    x[::1_000] *= 1e6
    return x


def with_an_outlier(x):
    x[17] *= 1e12
    return x


def with_zero_rows(x):
    x[::2] = 0
    return x


def with_equal_rows(x):
    x[::7] = x[3]
    return x


def with_few_equal_rows(x):
    x[torch.arange(5, ITEMS, ITEMS // 40)] = 3 * x[3]
    return x


def of_few_values(x):
    return x.round()


def with_denormal_rows(x):
    x[::3] *= 1e-41
    return x


@pytest.mark.parametrize(
    "changed",
    [
        of_unlike_norms,
        with_huge_rows,
        with_an_outlier,
        with_zero_rows,
        with_equal_rows,
        with_few_equal_rows,
        of_few_values,
        with_denormal_rows,
        lambda x: x * 1e17,
        lambda x: x * torch.tensor([1e3] + [1.0] * (x.shape[1] - 1)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_lists_of_odd_tables(changed, scale, check):
    check(changed(random(ITEMS, 8)), scale * random(6, 8, seed=1), 20, seen=some_seen(6))


@pytest.mark.parametrize(
    "changed",
    [
        lambda x: x * 1e-41,
        lambda x: x * 1e-20,
        lambda x: x * 0 + 1,
        lambda x: x * 0,
        lambda x: x + 100,
    ],
)
def test_lists_of_tables_whose_items_are_too_much_alike(changed, check):
    vectors, states = changed(random(ITEMS, 8)), random(6, 8, seed=1)
    check(vectors, states, 20, used=False, seen=some_seen(6))


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1e-18, 1e37])
def test_queries_of_no_fair_size_have_all_scores_made(scale, check):
    check(random(ITEMS, 8), scale * random(6, 8, seed=1), 20, used=False)


def test_one_such_query_takes_its_tile_along(filled):
    vectors, states = random(ITEMS, 8), random(40, 8, seed=1)
    skip_where_places_matter(vectors, 8)
    states[2] = 0
    expected = best(Products(vectors, states), 20)
    found = best(Quantised(vectors, states), 20)
    assert all(np.array_equal(*each) for each in zip(found, expected, strict=True))
    assert filled == [40, 32]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("least", [0.7, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1e33])
def test_lists_with_huge_boosts(sign, least, scale, check):
    """In units of a query they are infinite, and so are sums where scores are large."""
    rng = np.random.default_rng(3)
    items, boosts = np.sort(rng.choice(ITEMS, 500, replace=False)), np.zeros(ITEMS, np.float32)
    boosts[items] = sign * np.finfo(np.float32).max * rng.uniform(least, 1, len(items))
    allowed = items if sign < 0 else None
    states = scale * random(6, 8, seed=1)
    check(random(ITEMS, 8), states, 20, boosts=boosts, items=allowed, seen=some_seen(6))


def test_items_with_infinite_boosts_stand_first(check):
    boosts = np.zeros(ITEMS, np.float32)
    boosts[::1_000], boosts[1::2] = np.inf, -np.inf
    # What is left out stays so.
    boosts[70] = np.inf
    options = {"boosts": boosts, "items": np.delete(np.arange(ITEMS), 70)}
    check(random(ITEMS, 8), random(6, 8, seed=1), 100, used=False, **options)


def test_a_boost_that_is_not_a_number_is_refused():
    boosts = np.zeros(ITEMS, np.float32)
    boosts[7] = np.nan
    for kind in (Products, Quantised):
        with pytest.raises(TrainingError, match="not a number"):
            best(kind(random(ITEMS, 8), random(2, 8, seed=1)), 10, boosts=boosts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["item", "last item", "query"])
def test_what_is_not_a_number_is_refused(value, where):
    vectors, states = random(ITEMS, 8), random(40, 8, seed=1)
    vectors[5 if where == "item" else -1, 3] = value if where != "query" else 0.0
    # Infinity times zero.
    states[:, 3] = vectors[9, 2] = 0
    if where == "query":
        states[33, 2] = value
    for scorer in (Products(vectors, states), Quantised(vectors, states)):
        with pytest.raises(TrainingError, match="not a number"):
            best(scorer, 10)


def test_few_candidates_hold_the_best():
    """With bounds for each item a few more than k are enough."""
    vectors, states = random(ITEMS, 64)[:WHOLE], random(50, 64, seed=1)
    nothing = torch.zeros(51, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    found, counts = QuantisedItems(vectors).candidates(states, 100, [None] * 50, nothing)
    exact = (states.double() @ vectors.double().T).topk(100).indices
    for row, count, items in zip(exact, counts, found, strict=True):
        assert set(row.tolist()) <= set(items[:count].tolist())
        assert count < 200


def test_bounds_hold_where_they_are_tight(check):
    """Items that lose all but one number are the best, by less than a hundredth of what they lost.

    Their bound is the score that they lost: the query lies along it.
    """
    vectors, states = torch.zeros(ITEMS, 16), torch.ones(1, 16)
    states[0, 0] = 0
    # Of these nothing is lost, as all of their numbers are the largest code.
    vectors[:100, 1:] = 0.496
    best_items = torch.arange(WHOLE // 2 + 5, WHOLE, WHOLE // 10)
    vectors[best_items, 0], vectors[best_items, 1:] = 127, 0.499
    scorer = check(vectors, states, len(best_items))
    assert set(best(scorer, len(best_items))[0][0].tolist()) == set(best_items.tolist())


def test_the_copy_follows_the_vectors(filled):
    vectors, states = random(ITEMS, 8), random(4, 8, seed=1)
    skip_where_places_matter(vectors, 4)
    scorer = Quantised(vectors, states)
    for change in (lambda: vectors.neg_(), lambda: vectors[100:200].mul_(5), lambda: None):
        change()
        rows, _ = best(scorer, 10)
        assert np.array_equal(rows, best(Products(vectors, states), 10)[0])
    scorer.vectors = random(ITEMS, 8, seed=2)
    rows, _ = best(scorer, 10)
    assert np.array_equal(rows, best(Products(scorer.vectors, states), 10)[0])
    assert sum(filled) == 4 * 4


def test_few_queries_make_no_copy(monkeypatch, filled):
    monkeypatch.setattr(quantised_items, "WORTH", 8)
    scorer = Quantised(random(ITEMS, 8), random(4, 8, seed=1))
    skip_where_places_matter(scorer.vectors, 4)
    # Until one is worth it, nothing is compiled for it either.
    looked, original = [], quantised_items._library
    monkeypatch.setattr(quantised_items, "_library", lambda: looked.append(1) or original())
    for asked, whole in ((4, 4), (8, 8), (12, 8), (16, 8)):
        best(scorer, 10)
        assert sum(filled) == whole, asked
        assert bool(looked) == (asked > 8), asked


@pytest.mark.parametrize("items, k", [(WHOLE - 1, 10), (ITEMS, 2_000)])
def test_where_it_does_not_pay_all_scores_are_made(items, k, check):
    check(random(items, 4), random(2, 4, seed=1), k, used=False)


def test_items_from_few_tiles_are_scored_alone(check):
    check(random(ITEMS, 4), random(2, 4, seed=1), 10, used=False, items=np.arange(50, 90))


def test_a_copy_that_tells_nothing_is_given_up(check):
    vectors, states = torch.ones(ITEMS, 8), random(quantised_items.TRIED, 8, seed=1)
    scorer = check(vectors, states, 10, used=False)
    assert scorer.quantised.of(vectors[:WHOLE], 1) is None


def test_scores_that_depend_on_their_place_are_all_made(monkeypatch, check):
    monkeypatch.setattr(quantised_top_k, "_same_anywhere", lambda *_: False)
    states = random(40, 8, seed=1)
    check(random(ITEMS, 8), states, 10, used=False, seen=some_seen(40))


def test_without_a_compiler_all_scores_are_made(monkeypatch, check):
    monkeypatch.setattr(quantised_items, "_find", lambda: "there is none")
    check(random(ITEMS, 8), random(4, 8, seed=1), 10, used=False)


@pytest.mark.parametrize("function", ["blossom_quantise", "blossom_search"])
def test_without_memory_all_scores_are_made(function, monkeypatch, check):
    original = quantised_items._run

    def run(name, call):
        if name == function:
            raise MemoryError
        original(name, call)

    monkeypatch.setattr(quantised_items, "_run", run)
    check(random(ITEMS, 8), random(4, 8, seed=1), 10, used=False)


def test_rooms_of_many_threads_are_bounded(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 192)
    k = scoring.LARGEST_K
    room = quantised_items.ROOM + quantised_items.ROOM_SHARE * k
    assert QuantisedItems.together(k) * 192 * room <= quantised_items.ROOMS
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert QuantisedItems.together(10) == quantised_items.QUERIES


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_find_the_same(threads, check):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(random(ITEMS, 16), random(40, 16, seed=1), 50, seen=some_seen(40))
    finally:
        torch.set_num_threads(before)


def test_a_thread_makes_a_copy_of_its_own_vectors(monkeypatch):
    """Though another asks for other vectors while it makes it."""
    kept, first, second = KeptCopy(), random(WHOLE, 4), random(WHOLE, 4, seed=1)
    other, original = Thread(target=kept.of, args=(second, 1)), quantised_items.QuantisedItems

    def made(vectors):
        copy = original(vectors)
        copy.of = vectors
        if vectors.data_ptr() == first.data_ptr():
            other.start()
            # As long as another that does not wait would take, and more.
            other.join(0.5)
        return copy

    monkeypatch.setattr(quantised_items, "QuantisedItems", made)
    assert kept.of(first, 1).of.data_ptr() == first.data_ptr()
    other.join()
    assert kept.of(second, 1).of.data_ptr() == second.data_ptr()


def test_what_was_looked_for_in_an_old_copy_does_not_count():
    kept = KeptCopy()
    old, new = kept.make(random(WHOLE, 4)), kept.make(random(WHOLE, 4, seed=1))
    kept.tell(old, 1_000, 1_000)
    assert kept._copy is new is not None
    kept.tell(new, 1_000, 1_000)
    assert kept._copy is None


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_a_model_ranks_by_it(backbone, monkeypatch, filled):
    model = build_model(small_config(backbone=backbone), ITEMS).eval()
    skip_where_places_matter(model.output_weight(), 9)
    histories = pack([np.arange(row, row + 5) for row in range(9)])
    found = TopK(model, 10, 9).of(histories)
    assert filled == []
    monkeypatch.setattr(KeptCopy, "of", lambda *_: None)
    expected = TopK(model, 10, 9).of(histories)
    assert sum(filled) == 9
    assert all(np.array_equal(*each) for each in zip(found, expected, strict=True))


def test_a_model_lets_its_copy_go():
    model = build_model(small_config(), ITEMS).eval()
    weight = model.output_weight()[:WHOLE]
    kept = model.quantised.of(weight, 1)
    assert model.quantised.of(weight, 1) is kept is not None
    assert copy.deepcopy(model).quantised._copy is None
    assert "quantised" not in str(model.state_dict().keys())
    model.train()
    assert model.quantised._copy is None


def test_a_model_on_another_device_keeps_nothing_of_its_table():
    model = build_model(small_config(), ITEMS).eval()
    model.quantised.of(model.output_weight()[:WHOLE], 1)
    model.to("meta")
    assert model.quantised._copy is model.quantised._of is None
