"""Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def rotate(x: Tensor, positions: Tensor, share: float = 1.0) -> Tensor:
    """Rotate pairs of dimensions by angles that grow with the position.

    The first ``share`` of the d dimensions, rounded to an even number m, are rotated in pairs
    (i, i + m/2). The others stay as they are: they compare contents at any distance, while a
    rotated pair loses what it has in common with a partner that is more than about
    THETA ** (2i / m) away.

    Args:
        x: [T, heads, d], d even.
        positions: [T], absolute position of each row in its history.
        share: of the dimensions that are rotated, 0 to 1; pair i by
            ``positions * THETA ** (-2i / m)``.

    Returns:
        [T, heads, d] in the type of ``x``; the angles are computed in float32 or better.
    """
    half = rotated_pairs(x.shape[-1], share)
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = _cos_sin(positions, half, exact)[:, :, None].unbind(1)
    first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    first, second = first.to(exact), second.to(exact)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), rest), dim=-1)


def rotated_pairs(size: int, share: float) -> int:
    """m / 2, the pairs of dimensions that are rotated in a head of ``size``."""
    return round(size * share / 2)


def frequencies(pairs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Angle by which each pair rotates from one position to the next, [pairs]."""
    return THETA ** -(torch.arange(pairs, device=device, dtype=dtype) / max(pairs, 1))


def _cos_sin(positions: Tensor, pairs: int, dtype: torch.dtype) -> Tensor:
    """Cosine and sine of each position's angles, [T, 2, pairs]."""
    angles = positions.to(dtype)[:, None] * frequencies(pairs, dtype, positions.device)
    return torch.stack((angles.cos(), angles.sin()), dim=1)
