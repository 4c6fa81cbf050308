"""Blossom attention that selects at random: other blocks, the same each time, nothing to learn."""

import torch

from benchmarks.accuracy.random_selection import build_random_selection
from blossomrec.config import ModelConfig
from blossomrec.models.transformer import build_blossom
from blossomrec.training.state import seeded

CONFIG = ModelConfig(hidden_size=32, heads=2, block_size=4, top_n=2, compress_window=8)


def test_blocks_are_selected_by_noise():
    with seeded(0):
        chosen = build_blossom(CONFIG, causal=True)
        random = build_random_selection(CONFIG, causal=True)
        x, starts = torch.randn(300, 32), torch.tensor([0, 100, 300], dtype=torch.int32)
    random.load_state_dict(chosen.state_dict())
    rows = torch.arange(300)
    results = [each(x, starts, distil_rows=rows) for each in (chosen, random, random)]
    assert results[0].selector_loss is not None and results[1].selector_loss is None
    assert results[1].selected.equal(results[2].selected)
    assert results[1].hidden.equal(results[2].hidden)
    # Late in a history there are many blocks to choose from, each about as often as the others.
    first, second = (each.selected[280:300].sort(-1).values for each in results[:2])
    assert (first != second).float().mean() > 0.5
    blocks = results[1].selected[200:300]
    counts = blocks[blocks >= 0].bincount()
    assert (counts > 0).float().mean() > 0.6 and counts.max() < 0.3 * counts.sum()
