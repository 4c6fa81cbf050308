# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Bias and GELU or ReLU in one pass over memory, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.kernels.activation import (
    activation_backward_kernel,
    activation_kernel,
)
from blossomrec.attention.backends.gpu.products import (
    PROGRAMS,
    TILE_ELEMENTS,
    cdiv,
    next_power_of_2,
)


def bias_activation(hidden: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """In place: ``hidden`` [T, F] becomes gelu(hidden + bias), or relu, and is returned."""
    rows, block = _tile(hidden)
    grid = (cdiv(len(hidden), rows), cdiv(hidden.shape[1], block))
    if len(hidden):
        activation_kernel[grid](hidden, bias, *hidden.shape, RELU=relu, ROWS=rows, BLOCK=block)
    return hidden


def bias_activation_backward(
    hidden: Tensor, bias: Tensor, grad: Tensor, *, relu: bool = False
) -> Tensor:
    """In place: ``grad`` becomes that of ``hidden``, and ``hidden`` its activation with the bias.

    Returns:
        The gradient of the bias, float32 [F].
    """
    rows, block = _tile(hidden)
    programs = min(PROGRAMS, cdiv(len(hidden), rows))
    sums = hidden.new_empty(programs, hidden.shape[1], dtype=torch.float32)
    grid = (programs, cdiv(hidden.shape[1], block))
    if len(hidden):
        activation_backward_kernel[grid](
            hidden, bias, grad, sums, *hidden.shape, RELU=relu, ROWS=rows, BLOCK=block
        )
    return sums.sum(0)


def _tile(hidden: Tensor) -> tuple[int, int]:
    block = min(TILE_ELEMENTS, next_power_of_2(hidden.shape[1]))
    return TILE_ELEMENTS // block, block
