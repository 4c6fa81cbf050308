"""Measures of a selector, against loops over tiny tensors."""

from __future__ import annotations

import math

import pytest
import torch

from blossomrec.report.inspect import selection_measures
from blossomrec.report.inspect.selection_measures import attention_coverage, choosing_rows
from random_selections import (
    BLOCK,
    CU_SEQLENS,
    GROUPS,
    HEADS,
    TOP_N,
    TOTAL,
    eligible,
    places,
    random_selection,
)


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(TOTAL, HEADS, 8, generator=generator) * 2
    return q, torch.randn(TOTAL, GROUPS, 8, generator=generator) * 2


def block_shares(q, k, row, start, length, causal) -> torch.Tensor:
    """Attention by block, [G, blocks], one query head after another."""
    last = row if causal else start + length - 1
    shares = torch.zeros(GROUPS, length // BLOCK + 1)
    for head in range(HEADS):
        group = head * GROUPS // HEADS
        scores = torch.stack([q[row, head] @ k[s, group] for s in range(start, last + 1)])
        weights = (scores / math.sqrt(8)).exp()
        weights /= weights.sum()
        for place, weight in enumerate(weights):
            shares[group, place // BLOCK] += weight * GROUPS / HEADS
    return shares


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tile", [1, 1 << 23])
def test_coverage_against_loops(tensors, causal, tile, monkeypatch):
    monkeypatch.setattr(selection_measures, "_TILE_ELEMENTS", tile)
    q, k = tensors
    selected = random_selection(causal)
    rows = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(2))
    mass = attention_coverage(q, k, selected, CU_SEQLENS, rows, block_size=BLOCK, causal=causal)
    where = places()
    for index, row in enumerate(rows.tolist()):
        _, start, length, own = where[row]
        shares = block_shares(q, k, row, start, length, causal)
        able = eligible(length, own, causal)
        for group in range(GROUPS):
            covered = sum(shares[group, j] for j in selected[row, group].tolist() if j >= 0)
            best = sum(sorted((shares[group, j].item() for j in able), reverse=True)[:TOP_N])
            assert mass.covered[index, group].item() == pytest.approx(float(covered), abs=1e-5)
            assert mass.best[index, group].item() == pytest.approx(best, abs=1e-5)
            assert mass.own[index, group] == pytest.approx(shares[group, own].item(), abs=1e-5)
    assert (mass.best >= mass.covered - 1e-6).all()
    assert (mass.best > mass.covered + 0.01).any()


def test_the_best_selection_covers_the_best_share(tensors):
    """One selection of the blocks with the largest shares: the oracle itself."""
    q, k = tensors
    selected = torch.full((TOTAL, GROUPS, TOP_N), -1, dtype=torch.int32)
    for row, start, length, own in places():
        if own:
            shares = block_shares(q, k, row, start, length, True)[:, :own]
            best = shares.topk(min(TOP_N, own)).indices.sort().values
            selected[row, :, : best.shape[1]] = best.int()
    rows = torch.arange(TOTAL)
    mass = attention_coverage(q, k, selected, CU_SEQLENS, rows, block_size=BLOCK, causal=True)
    torch.testing.assert_close(mass.covered, mass.best, atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_choosing_rows(causal):
    rows = choosing_rows(CU_SEQLENS, TOTAL, block_size=BLOCK, top_n=TOP_N, causal=causal)
    expected = [
        row for row, _, length, own in places() if len(eligible(length, own, causal)) > TOP_N
    ]
    assert rows.tolist() == expected
