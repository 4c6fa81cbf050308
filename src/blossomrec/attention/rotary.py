"""Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

THETA = 10_000.0
# Shortest and longest period of the pairs that the time rotates, in seconds.
PERIODS = (600, 3 * 365 * 86_400)


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
    exact = torch.promote_types(x.dtype, torch.float32)
    return rotate_by(x, cos_sin(positions, x.shape[-1], share, exact))


def rotate_by(x: Tensor, angles: Tensor) -> Tensor:
    """As :func:`rotate`, by given angles.

    Args:
        x: [T, heads, d].
        angles: [T, 2, m/2], cosine and sine of each row's, the same for all heads.
    """
    if _is_few(x):
        return torch.from_numpy(_few_rotated(x.numpy(), angles.numpy()))
    half, exact = angles.shape[2], torch.promote_types(x.dtype, angles.dtype)
    cos, sin = angles[:, :, None].unbind(1)
    first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    first, second = first.to(exact), second.to(exact)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), rest), dim=-1)


def _is_few(x: Tensor) -> bool:
    """Whether NumPy is through with it before PyTorch has begun."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
    return len(x) <= 4 and plain and not torch.is_grad_enabled()


def _few_rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    half, rotated = angles.shape[2], x.copy()
    cos, sin = angles[:, :1], angles[:, 1:]
    first, second = x[..., :half], x[..., half : 2 * half]
    rotated[..., :half] = first * cos - second * sin
    rotated[..., half : 2 * half] = second * cos + first * sin
    return rotated


def rotated_pairs(size: int, share: float) -> int:
    """m / 2, the pairs of dimensions that are rotated in a head of ``size``."""
    return round(size * share / 2)


def frequencies(pairs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Angle by which each pair rotates from one position to the next, [pairs]."""
    return THETA ** -(torch.arange(pairs, device=device, dtype=dtype) / max(pairs, 1))


def cos_sin(
    positions: Tensor, size: int, share: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Cosine and sine of each position's angles in a head of ``size``, [T, 2, m/2]."""
    each = frequencies(rotated_pairs(size, share), dtype, positions.device)
    angles = positions.to(dtype)[:, None] * each
    return torch.stack((angles.cos(), angles.sin()), dim=1)


@functools.lru_cache(maxsize=64)
def time_periods(pairs: int) -> list[int]:
    """Seconds in which each pair that the time rotates turns once."""
    ends = [math.log(end) for end in PERIODS]
    steps = [ends[0] + (ends[1] - ends[0]) * pair / max(pairs - 1, 1) for pair in range(pairs)]
    return [round(math.exp(step)) for step in steps]


@functools.lru_cache(maxsize=64)
def _frequencies_on_host(pairs: int) -> np.ndarray:
    return frequencies(pairs, torch.float32, torch.device("cpu")).numpy()


def few_cos_sin(positions: Tensor, seconds: Tensor, size: int, share: float, pairs: int) -> Tensor:
    """:func:`cos_sin` and, behind it, :func:`time_cos_sin`, of a few events on a CPU.

    In plain numbers: of so few, an operation on tensors takes longer than the angles.
    """
    each, periods = _frequencies_on_host(rotated_pairs(size, share)), time_periods(pairs)
    found = []
    for position, second in zip(positions.tolist(), seconds.tolist(), strict=True):
        # Rounded as the angles of whole histories are.
        angles = (np.float32(position) * each).tolist()
        angles += [second % period / period * (2 * math.pi) for period in periods]
        found.append([list(map(math.cos, angles)), list(map(math.sin, angles))])
    return torch.tensor(found)


def time_cos_sin(seconds: Tensor, pairs: int) -> Tensor:
    """Cosine and sine of angles that grow with the real time, float32 [T, 2, pairs].

    A pair turns once in its period; periods are spread evenly, in their logarithm, from ten minutes
    to three years. What is compared is the time between two events: the remainder of a period is
    taken of whole seconds, so that nothing is lost however long ago 1970 was.

    Args:
        seconds: int64 [T].
    """
    # Filled on the device, so that a CUDA graph can be captured.
    each = [seconds.remainder(period).double() / period for period in time_periods(pairs)]
    angles = (torch.stack(each, 1) * (2 * math.pi)).float()
    return torch.stack((angles.cos(), angles.sin()), dim=1)
