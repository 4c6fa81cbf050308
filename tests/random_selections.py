"""Three small histories, and blocks selected for their events at random."""

from __future__ import annotations

import itertools

import torch

BLOCK, TOP_N, HEADS, GROUPS = 4, 2, 4, 2
CU_SEQLENS = torch.tensor([0, 22, 27, 58], dtype=torch.int32)
TOTAL = 58


def places() -> list[tuple[int, int, int, int]]:
    """Row, first row and length of its history, and its own block, for every row."""
    edges = CU_SEQLENS.tolist()
    return [
        (row, start, end - start, (row - start) // BLOCK)
        for start, end in itertools.pairwise(edges)
        for row in range(start, end)
    ]


def eligible(length: int, own: int, causal: bool) -> list[int]:
    return list(range(own)) if causal else [j for j in range(length // BLOCK) if j != own]


def random_selection(causal: bool, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.full((TOTAL, GROUPS, TOP_N), -1, dtype=torch.int32)
    for row, _, length, own in places():
        able = torch.tensor(eligible(length, own, causal), dtype=torch.int32)
        for group in range(GROUPS):
            drawn = able[torch.randperm(len(able), generator=generator)[:TOP_N]].sort().values
            chosen[row, group, : len(drawn)] = drawn
    return chosen
