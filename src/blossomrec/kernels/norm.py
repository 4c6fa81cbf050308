# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Layer norm of a residual connection: norm(x + dropout(branch + bias)) in one pass.

Nothing but the two summands is kept for the backward pass, which makes sum, statistics and dropout
mask again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blossomrec.kernels import PROGRAMS, TILE_ELEMENTS, compute_dtype
from blossomrec.kernels.dropout import constants, draw_seed, drop


@triton.jit
def _normalised(
    x,
    branch,
    bias,
    seed,
    row,
    column,
    inside,
    place,
    size,
    eps,
    HAS_BIAS: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
):
    """The normalised sum, float32 [ROWS, BLOCK], and one over its deviation, [ROWS]."""
    added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        added += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)[None]
    total = drop(added, seed, row, DROPPED, KEPT)
    total += tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    total = tl.where(inside, total, 0.0)
    mean = tl.sum(total, 1) / size
    centred = tl.where(inside, total - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / size + eps)
    return centred * scale[:, None], scale


@triton.jit(do_not_specialize=["rows"])
def add_norm_kernel(
    x,
    branch,
    bias,
    weight,
    shift,
    seed,
    out,
    rows,
    size,
    eps,
    HAS_BIAS: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < size)[None]
    place = row.to(tl.int64)[:, None] * size + column[None]
    value, _ = _normalised(
        x, branch, bias, seed, row, column, inside, place, size, eps, HAS_BIAS, DROPPED, KEPT
    )
    factor = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=column < size, other=0.0).to(tl.float32)
    value = value * factor[None] + offset[None]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def add_norm_backward_kernel(
    grad,
    x,
    branch,
    bias,
    weight,
    seed,
    grad_x,
    grad_branch,
    sums,
    rows,
    size,
    eps,
    HAS_BIAS: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of both summands; sums [programs, 3, D] for those of weight, shift and bias."""
    column = tl.arange(0, BLOCK)
    factor = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    of_weight = tl.zeros([ROWS, BLOCK], tl.float32)
    of_shift = tl.zeros([ROWS, BLOCK], tl.float32)
    of_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < size)[None]
        place = row.to(tl.int64)[:, None] * size + column[None]
        slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        value, scale = _normalised(
            x, branch, bias, seed, row, column, inside, place, size, eps, HAS_BIAS, DROPPED, KEPT
        )
        of_weight += slope * value
        of_shift += slope
        slope *= factor[None]
        along = tl.sum(slope * value, 1) / size
        slope -= (tl.sum(slope, 1) / size)[:, None] + value * along[:, None]
        slope = tl.where(inside, slope * scale[:, None], 0.0)
        tl.store(grad_x + place, slope.to(grad_x.dtype.element_ty), mask=inside)
        slope = drop(slope, seed, row, DROPPED, KEPT)
        of_bias += slope
        tl.store(grad_branch + place, slope.to(grad_branch.dtype.element_ty), mask=inside)
    sums += tl.program_id(0) * 3 * size + column
    tl.store(sums, tl.sum(of_weight, 0), mask=column < size)
    tl.store(sums + size, tl.sum(of_shift, 0), mask=column < size)
    tl.store(sums + 2 * size, tl.sum(of_bias, 0), mask=column < size)


def forward(
    x: Tensor,
    branch: Tensor,
    bias: Tensor | None,
    norm: nn.LayerNorm,
    p: float,
    seed: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`add_norm`; without a gradient."""
    out = x.new_empty(x.shape, dtype=dtype)
    form = _form(x, bias, p)
    grid = (triton.cdiv(len(x), form["ROWS"]),)
    if len(x):
        add_norm_kernel[grid](
            x, branch, bias, norm.weight, norm.bias, seed, out, *x.shape, norm.eps, **form
        )
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    branch: Tensor,
    bias: Tensor | None,
    norm: nn.LayerNorm,
    p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and branch, and float32 [3, D]: of the norm's weight and bias, of ``bias``."""
    grad_x, grad_branch = torch.empty_like(x), torch.empty_like(branch)
    form = _form(x, bias, p)
    programs = min(PROGRAMS, triton.cdiv(len(x), form["ROWS"]))
    sums = x.new_empty(programs, 3, x.shape[1], dtype=torch.float32)
    if len(x):
        add_norm_backward_kernel[(programs,)](
            grad.contiguous(),
            x,
            branch,
            bias,
            norm.weight,
            seed,
            grad_x,
            grad_branch,
            sums,
            *x.shape,
            norm.eps,
            **form,
        )
    return grad_x, grad_branch, sums.sum(0)


def add_norm(x: Tensor, branch: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
    """norm(x + dropout(branch)).

    Args:
        x, branch: [T, D], of any types the kernels take.
        norm: over D, with weight and bias.
        p: probability of dropout, 0 where there is none.

    Returns:
        [T, D] in the type of autocast, or of ``x`` without.
    """
    return _AddNorm.apply(x.contiguous(), branch.contiguous(), norm.weight, norm.bias, norm, p)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, weight, shift, norm, p):
        seed = draw_seed(x.device) if p else x.new_empty(0)
        ctx.save_for_backward(x, branch, seed)
        ctx.norm, ctx.p = norm, p
        return forward(x, branch, None, norm, p, seed, compute_dtype(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, branch, seed = ctx.saved_tensors
        grad_x, grad_branch, sums = backward(grad, x, branch, None, ctx.norm, ctx.p, seed)
        return grad_x, grad_branch, sums[0], sums[1], None, None


def _form(x: Tensor, bias: Tensor | None, p: float) -> dict[str, int | float | bool]:
    block = max(8, triton.next_power_of_2(x.shape[1]))
    rows = max(1, TILE_ELEMENTS // block)
    return {"HAS_BIAS": bias is not None, "ROWS": rows, "BLOCK": block, **constants(p)}
