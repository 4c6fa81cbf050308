"""Nearly the best items: how many of them, and that nothing appears that may not."""

import numpy as np
import pytest
import torch
from serving_runs import Server

from blossomrec.config import ModelConfig
from blossomrec.errors import ConfigError
from blossomrec.evaluation.scoring import Queries
from blossomrec.models import build_model
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.version import approximate
from blossomrec.serving.version.approximate import ApproximateRanking
from blossomrec.serving.version.ranking import Choice, Ranking
from small_options import MODEL

pytest.importorskip("faiss", reason="the approximation is its")


@pytest.fixture(scope="module")
def model():
    """5,000 items in clusters, as those of a catalogue are. Read only."""
    model = build_model(ModelConfig(**MODEL), 5_000).eval()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, 16, generator=generator)
    with torch.no_grad():
        noise = torch.randn(5_000, 16, generator=generator)
        model.item_embeddings.weight.copy_(centres.repeat(50, 1) + noise / 2)
    return model


def requests(count=200, k=10):
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    left_out = [rng.choice(5_000, rng.integers(0, 300), replace=False) for _ in range(count)]
    queries = Queries(torch.randn(count, 16, generator=generator))
    return queries, [Choice(k, [rows]) for rows in left_out]


def recall(found, wanted):
    shares = [
        len(np.intersect1d(mine[0], best[0])) / len(best[0])
        for mine, best in zip(found, wanted, strict=True)
    ]
    return float(np.mean(shares))


@torch.inference_mode()
def test_most_of_the_best_items_are_found(model):
    queries, choices = requests()
    exact = Ranking(model).best(queries, choices)
    shares = {}
    for probes in (1, 8, 1_000):
        found = ApproximateRanking(model, probes, Metrics()).best(queries, choices)
        shares[probes] = recall(found, exact)
        for (rows, scores), choice in zip(found, choices, strict=True):
            assert len(set(rows)) == 10
            assert not np.isin(rows, choice.left_out[0]).any()
            assert (np.diff(scores) <= 0).all()
    assert shares[1] < shares[8] and shares[8] > 0.85
    # All lists are the whole catalogue.
    assert shares[1_000] == 1.0
    for (rows, scores), (best, values) in zip(found, exact, strict=True):
        assert rows.tolist() == best.tolist()
        assert scores == pytest.approx(values, abs=1e-4)


@torch.inference_mode()
def test_what_is_missed_is_measured(model, monkeypatch):
    monkeypatch.setattr(approximate, "CHECK_EVERY", 1)
    queries, choices = requests()
    metrics = Metrics()
    found = ApproximateRanking(model, 4, metrics).best(queries, choices)
    measured = metrics.ann_found._value.get() / metrics.ann_wanted._value.get()
    assert measured == pytest.approx(recall(found, Ranking(model).best(queries, choices)))
    assert 0.5 < measured < 1


@torch.inference_mode()
def test_what_the_lists_do_not_hold_is_ranked_exactly(model):
    queries, _ = requests(3)
    approximation, exact = ApproximateRanking(model, 1, Metrics()), Ranking(model)
    off = np.arange(0, 5_000, 3)
    approximation.switch_off(off)
    exact.switch_off(off)
    most = np.arange(4_990)
    for choice in (
        Choice(4_000),
        Choice(10, among=np.arange(50)),
        Choice(10, [most]),
        Choice(10, [np.arange(5_000)]),
        Choice(10_000, [most, most]),
    ):
        for mine, best in zip(
            approximation.best(queries, [choice] * 3),
            exact.best(queries, [choice] * 3),
            strict=True,
        ):
            # In another order only where scores are equal within rounding.
            assert set(mine[0]) == set(best[0])
            assert mine[1] == pytest.approx(best[1], abs=1e-4)
            assert not np.isin(mine[0], off).any()


def test_a_server_that_approximates(run, item_ids, tmp_path, one_thread):
    with Server(run, tmp_path / "a.sqlite") as server:
        exact = server.recommend(history=item_ids[:7], k=20)
    with Server(run, tmp_path / "b.sqlite", probes=9) as server:
        found = server.recommend(history=item_ids[:7], k=20)
        assert [one["item"] for one in found] == [one["item"] for one in exact]
        assert "blossomrec_ann_wanted_total" in server.client.get("/metrics").text


def test_a_model_that_mixes_in_own_items_is_refused():
    model = build_model(ModelConfig(**MODEL | {"repeats": "on"}), 50)
    with pytest.raises(ConfigError, match=r"probes is 4: .* model\.repeats 'on'"):
        ApproximateRanking(model, 4, Metrics())
