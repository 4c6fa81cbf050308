import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blossomrec.data.batch import pack
from blossomrec.errors import TrainingError
from blossomrec.evaluation import scoring
from blossomrec.evaluation.top_k import Seen, TopK
from ranking_oracle import DotScorer, TableScorer, recommended


def top_k(scorer, histories, k, *, seen=None, items=None, score_elements=None):
    items = None if items is None else np.unique(items)
    top = TopK(scorer, k, len(histories), items=items, device="cpu", score_elements=score_elements)
    return top.of(pack(histories), None if seen is None else Seen.of(seen))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(scoring, "GROUP", 4)
    monkeypatch.setattr(scoring, "TILE_ITEMS", 8)
    monkeypatch.setattr(scoring, "TILE_ROWS", 2)
    monkeypatch.setattr(scoring, "WORK_ELEMENTS", 32)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_the_best_items_in_order(small_tiles, data):
    num_items = data.draw(st.integers(1, 40))
    seed, levels = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([1, 3, 1000]))
    rng = np.random.default_rng(seed)
    table = rng.integers(-levels, levels, (num_items, num_items))
    histories = [
        rng.integers(0, num_items, n) for n in data.draw(st.lists(st.integers(1, 6), min_size=1))
    ]
    k = data.draw(st.integers(1, 50))
    filtered, restricted = data.draw(st.booleans()), data.draw(st.booleans())
    allowed = rng.permutation(num_items)[: data.draw(st.integers(1, num_items))]
    rows, scores = top_k(
        TableScorer(table),
        histories,
        k,
        seen=histories if filtered else None,
        items=allowed if restricted else None,
        score_elements=data.draw(st.sampled_from([1, 100, 10_000])),
    )
    for number, history in enumerate(histories):
        left_out = set(history.tolist()) if filtered else set()
        if restricted:
            left_out |= set(range(num_items)) - set(allowed.tolist())
        expected = recommended(table[history[-1]], left_out, k)
        missing = k - len(expected)
        assert rows[number].tolist() == expected + [-1] * missing
        assert (
            scores[number].tolist()
            == [table[history[-1], i] for i in expected] + [-np.inf] * missing
        )


def test_agrees_with_a_sort_over_several_real_tiles():
    scorer = DotScorer(40_000)
    scorer.eval()
    histories = [np.arange(5) * n + n for n in range(1, 70)]
    rows, scores = top_k(scorer, histories, 300)
    with torch.no_grad():
        everything = scorer.scores(scorer.queries(pack(histories)), 0, 40_000)
    expected = everything.sort(descending=True).values[:, :300]
    assert torch.allclose(torch.from_numpy(scores), expected, rtol=1e-5)
    assert torch.allclose(everything.gather(1, torch.from_numpy(rows)), expected, rtol=1e-5)
    assert all(len(set(row)) == 300 for row in rows.tolist())


def test_zero_and_minus_zero_are_equal():
    table = np.zeros((6, 6))
    table[:, :3] = -0.0
    assert top_k(TableScorer(table), [np.array([0])], 6)[0].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_items_that_a_model_scores_lowest_are_still_items():
    table = np.full((5, 5), -np.inf)
    table[:, 3] = np.inf
    rows, _ = top_k(TableScorer(table), [np.array([0])], 5, seen=[np.array([1])])
    assert rows.tolist() == [[3, 0, 2, 4, -1]]


def test_scores_that_are_no_numbers_are_refused():
    table = np.zeros((70, 70))
    table[2, 68] = np.nan
    with pytest.raises(TrainingError, match="not a number"):
        top_k(TableScorer(table), [np.array([0]), np.array([2])], 3)


def test_a_model_in_training_is_put_back_and_had_no_dropout():
    scorer = DotScorer(30)
    first, second = (top_k(scorer.train(), [np.array([0, 1])], 5)[1] for _ in range(2))
    assert scorer.training
    assert (first == second).all()
