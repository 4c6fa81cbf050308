# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Bias and activation in one pass, forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl


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
