"""Measures of a trained selector, against loops over tiny tensors."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.selector import measured_selection
from benchmarks.selector.measured_selection import (
    gate_balance,
    hubness,
    measure_selection,
    planted_hits,
    selected_distances,
)
from benchmarks.selector.recall_task import RecallConfig, make_recall_task
from blossomrec.config import ModelConfig
from blossomrec.models.building import build_model
from blossomrec.report.inspect.selection_measures import attention_coverage, choosing_rows
from random_selections import (
    BLOCK,
    CU_SEQLENS,
    GROUPS,
    HEADS,
    TOP_N,
    TOTAL,
    random_selection,
)


@pytest.mark.parametrize("causal", [True, False])
def test_hubness_against_loops(causal):
    selected = random_selection(causal)
    found = hubness(selected, CU_SEQLENS, block_size=BLOCK, causal=causal)
    choosing = choosing_rows(
        CU_SEQLENS, TOTAL, block_size=BLOCK, top_n=TOP_N, causal=causal
    ).tolist()
    for group in range(GROUPS):
        largest, entropy = [], []
        for first, last in ((0, 22), (27, 58)):
            rows = [row for row in choosing if first <= row < last]
            chosen = selected[rows, group].flatten().tolist()
            counts = [chosen.count(block) for block in range((last - first) // BLOCK)]
            largest.append(max(counts) / len(rows))
            parts = [count / len(chosen) for count in counts if count]
            entropy.append(-sum(p * math.log(p) for p in parts) / math.log(len(counts)))
        assert found.largest_share[group].item() == pytest.approx(sum(largest) / 2, abs=1e-5)
        assert found.entropy[group].item() == pytest.approx(sum(entropy) / 2, abs=1e-5)


def test_a_hub_is_seen():
    selected = random_selection(True)
    selected[..., 0] = 0
    selected[..., 1] = -1
    hubs = hubness(selected, CU_SEQLENS, block_size=BLOCK, causal=True)
    assert hubs.largest_share.tolist() == [1.0, 1.0] and hubs.entropy.tolist() == [0.0, 0.0]
    short = torch.tensor([0, 8], dtype=torch.int32)
    assert hubness(selected[:8], short, block_size=BLOCK, causal=True).entropy.isnan().all()


def test_gates_and_distances():
    gates = torch.tensor([[[0.1, 0.3], [0.5, 0.5]], [[0.6, 0.2], [0.9, 0.1]]])
    torch.testing.assert_close(gate_balance(gates), torch.tensor([0.5, 0.7]))
    selected = torch.full((TOTAL, 1, 2), -1, dtype=torch.int32)
    selected[21, 0] = torch.tensor([1, 4])  # own block 5
    selected[57, 0, 0] = 0  # own block 7
    assert selected_distances(selected, CU_SEQLENS, BLOCK).tolist() == [16, 4, 28]


@pytest.fixture(scope="module")
def task():
    return make_recall_task(
        RecallConfig(
            histories=6,
            length=96,
            items=40,
            cue_items=10,
            queries=3,
            cues=5,
            min_distance=30,
            max_distance=80,
        )
    )


def small_model(**options):
    torch.manual_seed(0)
    return build_model(
        ModelConfig(
            max_len=96,
            hidden_size=16,
            heads=HEADS,
            kv_heads=GROUPS,
            inner_size=16,
            block_size=BLOCK,
            top_n=TOP_N,
            compress_window=BLOCK,
            **options,
        ),
        40,
    )


def test_hand_made_selection_has_recall_1_or_0(task):
    rows = torch.from_numpy(task.rows)
    planted = torch.from_numpy(task.planted_blocks(BLOCK))
    selected = torch.full((task.items.size, GROUPS, TOP_N), -1, dtype=torch.int32)
    selected[rows, 0, 1] = planted.int()
    selected[rows, 1, 0] = (planted + 1).int()
    hits = planted_hits(selected, rows, planted)
    assert hits.float().mean(0).tolist() == [1.0, 0.0]
    assert hits.any(-1).all()


def test_profile_of_a_model(task):
    """Every number again from the parts, which are tested above."""
    model, batch = small_model(fusion="gated"), task.batch()
    rows, planted = torch.from_numpy(task.rows), torch.from_numpy(task.planted_blocks(BLOCK))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_selection(model, batch, rows=rows, planted=planted)
    assert model.training and not model.layers[0].attention._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.eval()
        kept = model.encode(batch, keep_layers=True)
    hits = torch.stack([planted_hits(layer.selected, rows, planted) for layer in kept.layers])
    assert found.recall_any == pytest.approx(hits.any(-1).any(0).float().mean().item())
    for layer, measured, hit in zip(kept.layers, found.layers, hits, strict=True):
        assert measured.recall == pytest.approx(hit.float().mean(0).tolist())
        assert measured.recall_any == pytest.approx(hit.any(-1).float().mean().item())
        assert measured.gate_balance == pytest.approx(gate_balance(layer.gates).tolist())
        distances = selected_distances(layer.selected, batch.cu_seqlens, BLOCK)
        assert measured.distances[2] == pytest.approx(distances.double().median().item(), abs=BLOCK)
        for covered, best, own, ratio in zip(
            measured.mass_covered,
            measured.mass_best,
            measured.mass_own,
            measured.mass_ratio,
            strict=True,
        ):
            assert 0 < covered <= best <= 1 - own + 1e-6
            assert ratio == pytest.approx(covered / best)


def test_planted_own_blocks_are_left_out(task):
    model, batch = small_model(), task.batch()
    rows, planted = torch.from_numpy(task.rows), torch.from_numpy(task.planted_blocks(BLOCK))
    own = torch.from_numpy(task.position // BLOCK)
    alone = measure_selection(model, batch, rows=rows, planted=planted)
    with_own = torch.cat((rows, rows)), torch.cat((planted, own))
    assert measure_selection(model, batch, rows=with_own[0], planted=with_own[1]) == alone


def test_queries_and_keys_are_those_that_the_layer_attends_with(task, monkeypatch):
    import blossomrec.attention.layer as module

    used, measured = [], []
    attend, cover = module.blossom_attention, attention_coverage
    monkeypatch.setattr(
        module,
        "blossom_attention",
        lambda q, k, *a, **o: used.append((q, k)) or attend(q, k, *a, **o),
    )
    monkeypatch.setattr(
        measured_selection,
        "attention_coverage",
        lambda q, k, *a, **o: measured.append((q, k)) or cover(q, k, *a, **o),
    )
    measure_selection(small_model(norm="pre"), task.batch())
    assert len(used) == len(measured) == 2
    for mine, theirs in zip(used, measured, strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])


def test_profile_without_planted_blocks_is_a_seeded_sample(task):
    model, batch = small_model(backbone="bert4rec"), task.batch()
    one, again, other = (
        measure_selection(model, batch, sample=20, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again and one != other
    assert one.recall_any is None and one.layers[0].recall is None


def test_what_cannot_be_measured(task):
    batch, rows = task.batch(), torch.arange(3)
    with pytest.raises(ValueError, match="no Blossom attention"):
        measure_selection(small_model(attention="full"), batch)
    with pytest.raises(ValueError, match="without rows"):
        measure_selection(small_model(), batch, planted=rows)
    with pytest.raises(ValueError, match="no event to measure has more than top_n, 2"):
        measure_selection(small_model(), batch, rows=rows)
