# type: ignore -- the bodies are Triton, which Python's types do not describe
"""The second half of a post-norm layer: norm(x + dropout(feed-forward(x))).

Between the products stand two passes forward and two backward. The hidden layer, the widest thing
in a layer, is not kept for the backward pass but made again from the input.
"""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blossomrec.kernels import PROGRAMS, TILE_ELEMENTS, compute_dtype, norm, product
from blossomrec.kernels.dropout import draw_seed

# Rows whose hidden layer and its gradient are in memory at a time in the backward pass.
CHUNK = 65_536


@triton.jit
def _area(x):
    """Share of the normal distribution below x."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["rows"])
def activation_kernel(
    hidden, bias, rows, size, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """In place: ``hidden``, [rows, size], becomes gelu(hidden + bias), or relu."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < size)[None]
    place = row.to(tl.int64)[:, None] * size + column[None]
    value = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)[None]
    value = tl.maximum(value, 0.0) if RELU else value * _area(value)
    tl.store(hidden + place, value.to(hidden.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def activation_backward_kernel(
    hidden,
    bias,
    grad,
    sums,
    rows,
    size,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """In place: ``grad`` becomes that of ``hidden``, and ``hidden`` its activation.

    sums: [programs, size], for the gradient of the bias.
    """
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    added = tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)
    of_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < size)[None]
        place = row.to(tl.int64)[:, None] * size + column[None]
        value = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32) + added[None]
        slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            active = tl.maximum(value, 0.0)
            slope = tl.where(value > 0.0, slope, 0.0)
        else:
            area = _area(value)
            active = value * area
            slope *= area + value * (tl.exp(-0.5 * value * value) * 0.3989422804014327)
        tl.store(hidden + place, active.to(hidden.dtype.element_ty), mask=inside)
        of_bias += slope
        tl.store(grad + place, slope.to(grad.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0) * size + column, tl.sum(of_bias, 0), mask=column < size)


def bias_activation(hidden: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """In place: ``hidden`` [T, F] becomes gelu(hidden + bias), or relu, and is returned."""
    rows, block = _tile(hidden)
    grid = (triton.cdiv(len(hidden), rows), triton.cdiv(hidden.shape[1], block))
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
    programs = min(PROGRAMS, triton.cdiv(len(hidden), rows))
    sums = hidden.new_empty(programs, hidden.shape[1], dtype=torch.float32)
    grid = (programs, triton.cdiv(hidden.shape[1], block))
    if len(hidden):
        activation_backward_kernel[grid](
            hidden, bias, grad, sums, *hidden.shape, RELU=relu, ROWS=rows, BLOCK=block
        )
    return sums.sum(0)


def feed_forward_norm(
    x: Tensor, inner: nn.Linear, outer: nn.Linear, layer_norm: nn.LayerNorm, p: float
) -> Tensor:
    """layer_norm(x + dropout(outer(gelu(inner(x))))).

    Args:
        x: [T, D].
        inner, outer: D -> F and F -> D, with biases.
        layer_norm: over D, with weight and bias.
        p: probability of dropout, 0 where there is none.

    Returns:
        [T, D] in the type of autocast, or of ``x`` without.
    """
    weights = (inner.weight, inner.bias, outer.weight, outer.bias)
    return _FeedForwardNorm.apply(
        x.contiguous(), *weights, layer_norm.weight, layer_norm.bias, layer_norm, p
    )


class _FeedForwardNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, inner, inner_bias, outer, outer_bias, weight, shift, layer_norm, p):
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            inner, outer = inner.to(dtype), outer.to(dtype)
            branch = bias_activation(x.to(dtype) @ inner.T, inner_bias) @ outer.T
        seed = draw_seed(x.device) if p else x.new_empty(0)
        ctx.save_for_backward(x, inner, inner_bias, outer, outer_bias, branch, seed)
        ctx.layer_norm, ctx.p = layer_norm, p
        return norm.forward(x, branch, outer_bias, layer_norm, p, seed, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, inner, inner_bias, outer, outer_bias, branch, seed = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad_x, grad_branch, sums = norm.backward(
                grad, x, branch, outer_bias, ctx.layer_norm, ctx.p, seed
            )
            chunks = zip(*(each.split(CHUNK) for each in (x, grad_branch, grad_x)), strict=True)
            parts = [_hidden_gradients(*chunk, inner, inner_bias, outer) for chunk in chunks]
            products = [reduce(torch.add, each) for each in zip(*parts, strict=True)]
        of_norm, of_shift, of_bias = sums.unbind()
        return grad_x, *products, of_bias, of_norm, of_shift, None, None


def _hidden_gradients(
    x: Tensor,
    grad_branch: Tensor,
    grad_x: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    outer: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inner weight, its bias and outer weight; that of x is added to ``grad_x``."""
    x = x.to(inner.dtype)
    hidden, grad_hidden = x @ inner.T, grad_branch @ outer
    grad_bias = bias_activation_backward(hidden, inner_bias, grad_hidden)
    if grad_x.dtype == inner.dtype:
        grad_x.addmm_(grad_hidden, inner)
    else:
        grad_x += grad_hidden @ inner
    return product(grad_hidden.T, x), grad_bias, product(grad_branch.T, hidden)


def _tile(hidden: Tensor) -> tuple[int, int]:
    block = min(TILE_ELEMENTS, triton.next_power_of_2(hidden.shape[1]))
    return TILE_ELEMENTS // block, block
