# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Windows of keys through a two-layer perceptron, outer(relu(inner(window + places)))."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blossomrec.kernels import PROGRAMS, TILE_ELEMENTS, compute_dtype, product
from blossomrec.kernels.windows import copy_windows, windows_gradient


@triton.jit(do_not_specialize=["rows"])
def relu_kernel(hidden, bias, rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """In place: ``hidden``, [rows, size], becomes relu(hidden + bias)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < size)[None]
    place = row.to(tl.int64)[:, None] * size + column[None]
    value = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)[None]
    tl.store(hidden + place, tl.maximum(value, 0.0).to(hidden.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def relu_backward_kernel(hidden, grad, sums, rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """In place: ``grad`` of the activation ``hidden`` becomes that of what it was made of.

    sums: [programs, size], for the gradient of the bias.
    """
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    of_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < size)[None]
        place = row.to(tl.int64)[:, None] * size + column[None]
        active = tl.load(hidden + place, mask=inside, other=0.0) > 0.0
        slope = tl.load(grad + place, mask=inside & active, other=0.0)
        of_bias += slope.to(tl.float32)
        tl.store(grad + place, slope, mask=inside)
    tl.store(sums + tl.program_id(0) * size + column, tl.sum(of_bias, 0), mask=column < size)


def pooled_windows(
    k: Tensor,
    places: Tensor,
    inner: nn.Linear,
    outer: nn.Linear,
    where: tuple[Tensor, Tensor],
    block_size: int,
) -> Tensor:
    """One key for each block, from the window of keys that ends with it.

    Args:
        k: [T, G, d].
        places: [window, d], added to the keys of each window.
        inner: window * d -> F, with a bias.
        outer: F -> d, without.
        where: starts and numbers of the blocks, see ``windows.key_windows``.
        block_size: keys in a block.

    Returns:
        [J, G, d] in the type of autocast, or of ``k`` without.
    """
    weights = (places, inner.weight, inner.bias, outer.weight)
    return _PooledWindows.apply(k.contiguous(), *weights, *where, block_size)


class _PooledWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, places, inner, bias, outer, starts, numbers, block_size):
        dtype, form = compute_dtype(k), (block_size, len(places))
        with torch.autocast(k.device.type, enabled=False):
            inner, outer = inner.to(dtype), outer.to(dtype)
            _, hidden = _hidden(k, places, inner, bias, starts, numbers, form)
            pooled = hidden @ outer.T
        # Windows overlap and are as wide as all their keys: they are made again, not kept.
        ctx.save_for_backward(k, places, inner, bias, outer, starts, numbers)
        ctx.form = form
        return pooled.unflatten(0, (-1, k.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        k, places, inner, bias, outer, starts, numbers = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            windows, hidden = _hidden(k, places, inner, bias, starts, numbers, ctx.form)
            grad = grad.flatten(0, 1).to(outer.dtype)
            grad_hidden = grad @ outer
            form = _form(hidden)
            programs = min(PROGRAMS, triton.cdiv(len(hidden), form["ROWS"]))
            sums = hidden.new_empty(programs, hidden.shape[1], dtype=torch.float32)
            if programs:
                grid = (programs, _columns(hidden, form))
                relu_backward_kernel[grid](hidden, grad_hidden, sums, *hidden.shape, **form)
            grad_windows = grad_hidden @ inner
            grad_inner = product(grad_hidden.T, windows)
            grad_outer = product(grad.T, hidden)
        grad_places = grad_windows.sum(0, dtype=grad_inner.dtype).view(ctx.form[1], -1)
        grad_k = windows_gradient(grad_windows, starts, numbers, k.shape, *ctx.form, k.dtype)
        return grad_k, grad_places, grad_inner, sums.sum(0), grad_outer, None, None, None


def _hidden(
    k: Tensor,
    places: Tensor,
    inner: Tensor,
    bias: Tensor,
    starts: Tensor,
    numbers: Tensor,
    form: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Windows of keys and the layer after them, [J * G, window * d] and [J * G, F]."""
    windows = copy_windows(k, starts, numbers, *form, places, inner.dtype).flatten(0, 1)
    hidden = windows @ inner.T
    if len(hidden):
        tile = _form(hidden)
        grid = (triton.cdiv(len(hidden), tile["ROWS"]), _columns(hidden, tile))
        relu_kernel[grid](hidden, bias, *hidden.shape, **tile)
    return windows, hidden


def _form(hidden: Tensor) -> dict[str, int]:
    block = min(TILE_ELEMENTS, triton.next_power_of_2(hidden.shape[1]))
    return {"ROWS": TILE_ELEMENTS // block, "BLOCK": block}


def _columns(hidden: Tensor, form: dict[str, int]) -> int:
    return triton.cdiv(hidden.shape[1], form["BLOCK"])
