"""The best items by products of vectors, on kernels, against a sort of products in float64."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.errors import TrainingError
from blossomrec.evaluation import product_top_k, scoring
from blossomrec.evaluation.product_top_k import ProductTopK
from blossomrec.evaluation.top_k import Seen, TopK
from blossomrec.models import build_model, fused
from blossomrec.models.fused import catalogue_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALL = 1 << 20


def problem(users, items, size, scale=1.0):
    generator = torch.Generator().manual_seed(users + items)
    queries, vectors = (torch.randn(n, size, generator=generator) for n in (users, items))
    return (queries * scale).to(DEVICE), vectors.to(DEVICE)


def few_items_seen(users, items, most=6):
    rng = np.random.default_rng(users)
    return [rng.choice(items, min(items, rng.integers(0, most + 1)), False) for _ in range(users)]


def pairs(items):
    """Items to leave out for one query after another."""
    return None if items is None else Seen.of(items).on(torch.device(DEVICE))


def check(found, queries, vectors, k, *, offsets=None, seen=None):
    """Every list is one that a sort could give, but for items that are as good as equal."""
    rows, scores = found
    exact = queries.double() @ vectors.double().T
    error = 1e-6 * float(queries.norm(dim=1).max() * vectors.float().norm(dim=1).max())
    if offsets is not None:
        exact = exact + offsets.double()
    for number, items in enumerate([] if seen is None else seen):
        exact[number, torch.from_numpy(items).to(DEVICE)] = -torch.inf
    best = exact.sort(descending=True).values[:, :k]
    there = best > -torch.inf
    assert ((rows >= 0) == there).all()
    assert ((scores[there].double() - best[there]).abs() <= error).all()
    assert (scores[~there] == -torch.inf).all()
    own = exact.gather(1, rows.clamp(min=0))
    assert ((scores[there].double() - own[there]).abs() <= error).all()
    for row, valued in zip(rows.tolist(), scores.tolist(), strict=True):
        kept = [item for item in row if item >= 0]
        assert len(set(kept)) == len(kept)
        order = [(-score, item) for score, item in zip(valued, kept, strict=False)]
        assert order == sorted(order)


@pytest.fixture
def exactly(monkeypatch):
    """How many queries had all of their items scored exactly."""
    found, original = [], catalogue_scores.GroupedCatalogue.all_scores

    def counted(self, queries):
        found.extend(queries)
        return original(self, queries)

    monkeypatch.setattr(catalogue_scores.GroupedCatalogue, "all_scores", counted)
    return found


@pytest.mark.parametrize(
    "users, items, size, k",
    [(1, 1, 16, 1), (3, 255, 8, 255), (5, 257, 50, 7), (70, 1_000, 64, 10), (2, 700, 150, 100)],
)
@pytest.mark.parametrize("filtered", [False, True])
def test_the_best_items(users, items, size, k, filtered, exactly):
    queries, vectors = problem(users, items, size)
    offsets = seen = None
    if filtered:
        offsets = torch.zeros(items, device=DEVICE)
        offsets[::2] = -torch.inf
        offsets[1::4] = 0.5
        seen = few_items_seen(users, items)
    top = ProductTopK(vectors, k, offsets, score_elements=ALL)
    found = top.of(queries, pairs(seen))
    check(found, queries, vectors, k, offsets=offsets, seen=seen)
    assert not exactly


def test_few_groups_of_many_are_scored(monkeypatch, exactly):
    """With a bound for each group a few of them are enough, whatever was seen."""
    queries, vectors = problem(20, 20_000, 16)
    looked_at, original = [], catalogue_scores.GroupedCatalogue.scores

    def counted(self, queries, groups):
        looked_at.append(int((groups >= 0).sum(1).max()))
        return original(self, queries, groups)

    monkeypatch.setattr(catalogue_scores.GroupedCatalogue, "scores", counted)
    best = (queries @ vectors.T).topk(10).indices.cpu().numpy()
    seen = [np.concatenate([own, [0]]) for own in best]
    found = ProductTopK(vectors, 5, score_elements=ALL).of(queries, pairs(seen))
    check(found, queries, vectors, 5, seen=seen)
    assert looked_at and max(looked_at) <= 5 + 11 + 5
    assert not exactly


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vectors_of_any_size_and_type(scale, dtype, exactly):
    queries, vectors = problem(9, 3_000, 32, scale)
    vectors = vectors.to(dtype)
    found = ProductTopK(vectors, 4, score_elements=ALL).of(queries)
    check(found, queries, vectors, 4)
    assert not exactly


def test_close_vectors_are_told_apart():
    """Scores that are equal in 16 bits are not in float32."""
    queries, vectors = problem(4, 5_000, 16)
    vectors = vectors[:1] + 1e-5 * vectors
    check(ProductTopK(vectors, 10, score_elements=ALL).of(queries), queries, vectors, 10)


def test_equal_scores_stand_in_order_of_item_row():
    queries, _ = problem(3, 1, 8)
    vectors = torch.ones(3_000, 8, device=DEVICE)
    vectors[700:] = 0.5
    top = ProductTopK(vectors, 20, score_elements=ALL)
    rows, scores = top.of(torch.cat((queries.abs(), torch.zeros_like(queries[:1]))))
    assert rows.tolist() == [list(range(20))] * 4
    assert (scores == scores[:, :1]).all() and (scores[3] == 0).all()


def test_all_items_are_left_out():
    queries, vectors = problem(4, 600, 8)
    seen = [np.arange(600), np.arange(1, 600), np.arange(0), np.arange(0)]
    found = ProductTopK(vectors, 3, score_elements=ALL).of(queries, pairs(seen))
    check(found, queries, vectors, 3, seen=seen)
    assert found[0][:2].tolist() == [[-1, -1, -1], [0, -1, -1]]
    nothing = torch.full((600,), -torch.inf, device=DEVICE)
    rows, _ = ProductTopK(vectors, 3, nothing, score_elements=ALL).of(queries)
    assert (rows == -1).all()


def test_a_list_depends_on_no_other_query():
    queries, vectors = problem(10, 1_500, 16)
    queries[::2] *= 1e4
    # Some have to be scored exactly.
    vectors[100:400] = vectors[100]
    seen = few_items_seen(10, 1_500, most=40)
    rows, scores = ProductTopK(vectors, 9, score_elements=ALL).of(queries, pairs(seen))
    parts = ProductTopK(vectors, 9, score_elements=1).of(queries, pairs(seen))
    assert torch.equal(rows, parts[0]) and torch.equal(scores, parts[1])
    some = ProductTopK(vectors, 9, score_elements=ALL).of(queries[7:9], pairs(seen[7:9]))
    assert torch.equal(rows[7:9], some[0]) and torch.equal(scores[7:9], some[1])


def test_scores_that_are_no_numbers_are_refused():
    queries, vectors = problem(4, 600, 8)
    vectors[550, 3] = torch.nan
    with pytest.raises(TrainingError, match="not a number"):
        ProductTopK(vectors, 3, score_elements=ALL).of(queries)
    vectors[550, 3], queries[2, 1] = 0.0, torch.nan
    with pytest.raises(TrainingError, match="not a number"):
        ProductTopK(vectors, 3, score_elements=ALL).of(queries)


def test_bounds_are_no_smaller_than_scores_and_hardly_larger():
    queries, vectors = problem(30, 2_000, 100)
    catalogue = catalogue_scores.GroupedCatalogue(vectors)
    bounds, rounded = catalogue.bounds(queries)
    groups = torch.arange(catalogue.num_groups, device=DEVICE)
    numbers = torch.arange(catalogue_scores.GROUP, device=DEVICE)
    items = catalogue_scores.items_of(groups[:, None], numbers)
    assert [each.tolist() for each in catalogue_scores.places_of(items)] == [
        groups[:, None].expand_as(items).tolist(),
        numbers.expand_as(items).tolist(),
    ]
    exact = torch.nn.functional.pad(
        queries.double() @ vectors.double().T, (0, len(catalogue.offsets) - 2_000), value=-torch.inf
    )
    best = exact[:, items].amax(2)
    there = best > -torch.inf
    slack = catalogue.slack(rounded, groups.expand(30, -1))
    assert (bounds[there] >= best[there]).all()
    assert (bounds - best)[there].le(slack[there]).all()
    assert float(slack.max()) < 2**-9 * float(queries.norm(dim=1).max() * vectors.norm(dim=1).max())


@pytest.mark.parametrize("coarse", [4, 32])
def test_the_largest_bounds(coarse, monkeypatch):
    monkeypatch.setattr(product_top_k, "COARSE", coarse)
    bounds = torch.randn(5, 999, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for count in (1, 7, 100, 999):
        upper, places = product_top_k._largest(bounds, count)
        assert torch.equal(upper, bounds.sort(descending=True).values[:, :count])
        assert torch.equal(bounds.gather(1, places), upper)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    torch.manual_seed(0)
    config = ModelConfig(backbone="sasrec", hidden_size=16, layers=1, max_len=8)
    return build_model(config, 500).to(DEVICE).eval()


HISTORIES = [np.arange(1, 4) * n for n in range(1, 20)]


@pytest.mark.parametrize("k", [4, 600])
def test_a_model_takes_the_kernels_where_it_may(model, monkeypatch, k):
    seen, items = Seen.of(HISTORIES), np.arange(0, 500, 3)
    boosts = np.linspace(0, 0.01, 500, dtype=np.float32)

    def top(**given):
        found = TopK(model, k, len(HISTORIES), items=items, boosts=boosts, device=DEVICE, **given)
        return found, found.of(pack(HISTORIES), seen)

    taken, (rows, scores) = top()
    assert taken._products is not None and "buffer" not in vars(taken._block)
    assert rows.shape == scores.shape == (19, k) and rows.dtype == np.int64
    monkeypatch.setattr(fused, "usable", lambda x: False)
    plain, expected = top()
    assert plain._products is None
    assert (rows == expected[0]).all()
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5, atol=1e-6)


def test_other_scorers_do_without(model):
    def vectors(scorer, k=5):
        return product_top_k.vectors_for(scorer, k)

    assert vectors(model) is model.output_weight()
    assert vectors(model, scoring.LARGEST_K + 1) is None

    class Otherwise(type(model)):
        def scores(self, queries, start, stop):
            return super().scores(queries, start, stop) / 2

    model.__class__ = Otherwise
    assert vectors(model) is None


@pytest.mark.parametrize("times", [1, 40])
def test_the_logarithm_of_summed_exponentials(times):
    queries, vectors = problem(150, 1_000, 50, scale=0.3 * times)
    lse = catalogue_scores.GroupedCatalogue(vectors).lse(queries)
    exact = queries.double() @ vectors.double().T
    error = (lse - exact.logsumexp(1)).abs().max() / exact.abs().max()
    assert lse.dtype == torch.float32 and float(error) < 1e-6


@pytest.fixture
def mixing(monkeypatch):
    """A model that mixes in the items of the histories, unlike at its start."""
    monkeypatch.setattr(fused, "usable", lambda x: True)
    torch.manual_seed(0)
    config = ModelConfig(backbone="sasrec", hidden_size=16, layers=1, max_len=8, repeats="on")
    model = build_model(config, 300).to(DEVICE).eval()
    assert model.own_history is not None
    for parameter in model.own_history.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("seen", ["nothing", "some", "all"])
def test_own_items_are_mixed_in(mixing, monkeypatch, seen):
    sums, original = [], catalogue_scores.GroupedCatalogue.lse
    monkeypatch.setattr(
        catalogue_scores.GroupedCatalogue, "lse", lambda *a: sums.append(a) or original(*a)
    )
    histories = [np.arange(1, 7) * n % 40 for n in range(1, 15)]
    wanted = {"nothing": None, "some": [each[:3] for each in histories], "all": histories}[seen]
    left_out = None if wanted is None else Seen.of(wanted)
    boosts = np.linspace(0, 0.5, 300, dtype=np.float32)
    items = np.arange(0, 300, 2)

    def top():
        found = TopK(mixing, 8, len(histories), items=items, boosts=boosts, device=DEVICE)
        return found.of(pack(histories), left_out)

    rows, scores = top()
    assert len(sums) == (seen != "all")
    monkeypatch.setattr(fused, "usable", lambda x: False)
    expected = top()
    assert (rows == expected[0]).all()
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5, atol=1e-5)
    own = [np.isin(row, history).any() for row, history in zip(rows, histories, strict=True)]
    assert any(own) == (seen != "all")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [64, 100, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_catalogue_on_a_gpu(size, dtype, exactly):
    queries, vectors = problem(300, 200_001, size)
    vectors = vectors.to(dtype)
    offsets = torch.zeros(len(vectors), device=DEVICE)
    offsets[::2] = -torch.inf
    best = (queries @ vectors.float().T).topk(150).indices.cpu().numpy()
    top = ProductTopK(vectors, 100, offsets, score_elements=scoring.SCORE_ELEMENTS)
    check(top.of(queries, pairs(list(best))), queries, vectors, 100, offsets=offsets, seen=best)
    assert not exactly
