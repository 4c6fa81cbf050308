"""Packed bounds of awkward histories, and how far a value is from the exact one."""

from __future__ import annotations

from itertools import accumulate

import torch

# Below, at and above a chunk of 64 events, none at all, and one alone.
LENGTHS = [[1], [63, 0, 111], [64, 65, 1, 0], [200], [3, 0, 0, 130, 7], [0, 5]]


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Float64 numbers that every run has."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    value, exact = value.detach().double(), exact.detach().double()
    return float((value - exact).norm() / exact.norm().clamp(min=1e-30))
