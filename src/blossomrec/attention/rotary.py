"""Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Turn each pair of dimensions (i, i + d/2) by an angle that grows with the position.

    Args:
        x: [T, heads, d], d even.
        positions: [T], absolute position of each row in its history.
        theta: base of the frequencies; pair i turns by ``positions * theta ** (-2i / d)``.

    Returns:
        [T, heads, d] in the type of ``x``; the angles are computed in float32 or better.
    """
    half = x.shape[-1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)
    exponents = torch.arange(half, device=x.device, dtype=exact) / half
    angles = positions.to(exact)[:, None] * theta**-exponents  # [T, d/2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.to(exact).split(half, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
