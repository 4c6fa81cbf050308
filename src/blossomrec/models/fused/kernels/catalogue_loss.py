# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Softmax over the catalogue tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["rows", "items", "tiles"])
def lse_kernel(
    hidden,
    weight,
    targets,
    lse,
    target_logits,
    rows,
    items,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Logarithm of the summed exponentials over a part of the items, [parts, rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D_BLOCK)
    held = (row < rows)[:, None] & (column < D)[None]
    factors = tl.load(hidden + row.to(tl.int64)[:, None] * D + column[None], mask=held, other=0.0)
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    first = tl.program_id(1) * tiles * ITEMS
    for step in range(tiles):
        item = first + step * ITEMS + tl.arange(0, ITEMS)
        place = item.to(tl.int64)[:, None] * D + column[None]
        known = (item < items)[:, None] & (column < D)[None]
        vectors = tl.load(weight + place, mask=known, other=0.0)
        logits = tl.dot(factors, tl.trans(vectors)) * LOG2_E
        logits = tl.where((item < items)[None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        top = higher
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(lse + place, (top + tl.log2(total)) * LOG_2, mask=row < rows)
    if tl.program_id(1) == 0:
        target = tl.load(targets + row, mask=row < rows, other=0)
        known = held & (target >= 0)[:, None]
        vectors = tl.load(weight + target[:, None] * D + column[None], mask=known, other=0.0)
        logits = tl.sum(factors.to(tl.float32) * vectors.to(tl.float32), 1)
        tl.store(target_logits + row, logits, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "parts"])
def loss_kernel(partial, targets, target_logits, lse, losses, rows, parts, ROWS: tl.constexpr):
    """Log-sum-exp over all items from those of the parts, and losses, [rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(parts):
        value = tl.load(partial + part * rows + row, mask=inside, other=0.0)
        higher = tl.maximum(top, value)
        total = total * tl.exp(top - higher) + tl.exp(value - higher)
        top = higher
    counted = tl.load(targets + row, mask=inside, other=-1) >= 0
    row_lse = top + tl.log(total)
    loss = row_lse - tl.load(target_logits + row, mask=inside, other=0.0)
    tl.store(losses + row, tl.where(counted, loss, 0.0), mask=inside)
    tl.store(lse + row, tl.where(counted, row_lse, float("inf")), mask=inside)


@triton.jit(do_not_specialize=["rows", "items"])
def excess_kernel(
    hidden,
    weight,
    targets,
    lse,
    excess,
    rows,
    items,
    start,
    width,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Gradient of the logits, probability less 1 at the target, [rows, width] from item ``start``.

    Zero beyond the last item. One program takes ``SPAN`` tiles of items.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D_BLOCK)
    held = (row < rows)[:, None] & (column < D)[None]
    factors = tl.load(hidden + row.to(tl.int64)[:, None] * D + column[None], mask=held, other=0.0)
    row_lse = tl.load(lse + row, mask=row < rows, other=0.0) * LOG2_E
    target = tl.load(targets + row, mask=row < rows, other=-1)
    for step in range(SPAN):
        offset = (tl.program_id(0) * SPAN + step) * ITEMS + tl.arange(0, ITEMS)
        item = start + offset
        known = (item < items)[:, None] & (column < D)[None]
        place = item.to(tl.int64)[:, None] * D + column[None]
        vectors = tl.load(weight + place, mask=known, other=0.0)
        logits = tl.dot(factors, tl.trans(vectors)) * LOG2_E
        value = tl.exp2(logits - row_lse[:, None])
        value -= (item[None] == target[:, None]).to(tl.float32)
        value = tl.where((item < items)[None], value, 0.0)
        place = row.to(tl.int64)[:, None] * width + offset[None]
        inside = (row < rows)[:, None] & (offset < width)[None]
        tl.store(excess + place, value.to(excess.dtype.element_ty), mask=inside)
