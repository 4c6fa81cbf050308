# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Residual, dropout and layer norm in one pass, forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.models.fused.kernels.dropout import drop


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
    HAS_BRANCH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
):
    """The normalised sum, float32 [ROWS, BLOCK], and one over its deviation, [ROWS]."""
    total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            added += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)[None]
        total += drop(added, seed, row, DROPPED, KEPT)
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
    HAS_BRANCH: tl.constexpr,
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
        HAS_BRANCH,
        HAS_BIAS,
        DROPPED,
        KEPT,
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
    HAS_BRANCH: tl.constexpr,
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
            HAS_BRANCH,
            HAS_BIAS,
            DROPPED,
            KEPT,
        )
        of_weight += slope * value
        of_shift += slope
        slope *= factor[None]
        along = tl.sum(slope * value, 1) / size
        slope -= (tl.sum(slope, 1) / size)[:, None] + value * along[:, None]
        slope = tl.where(inside, slope * scale[:, None], 0.0)
        tl.store(grad_x + place, slope.to(grad_x.dtype.element_ty), mask=inside)
        if HAS_BRANCH:
            slope = drop(slope, seed, row, DROPPED, KEPT)
            of_bias += slope
            tl.store(grad_branch + place, slope.to(grad_branch.dtype.element_ty), mask=inside)
    sums += tl.program_id(0) * 3 * size + column
    tl.store(sums, tl.sum(of_weight, 0), mask=column < size)
    tl.store(sums + size, tl.sum(of_shift, 0), mask=column < size)
    tl.store(sums + 2 * size, tl.sum(of_bias, 0), mask=column < size)
