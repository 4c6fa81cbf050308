# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Softmax over the catalogue tile by tile, as attention from rows to items and back.

A row's probabilities are never in memory: with its logarithm of summed exponentials (lse) the mean
of the item vectors is made in the same pass, as attention makes the mean of its values.

The items may be a sample, by numbers of their own and with what is added to their logits; of those,
the ones that have the number of a row's target do not count for that row.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)
# Probabilities are rounded to 16 bits times UNIT, 2 to the power of SHIFT, or float16 would lose
# small ones.
SHIFT = tl.constexpr(10.0)
UNIT = tl.constexpr(2.0**10)
# Less than any sum of exponentials, of which the largest is 1.
LEAST = tl.constexpr(1.0e-30)


@triton.jit
def _add_items(
    state,
    factors,
    target,
    weight,
    numbers,
    bias,
    first,
    items,
    D: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    MEAN: tl.constexpr,
    SAMPLE: tl.constexpr,
    CUT: tl.constexpr,
):
    """Maximum, sum and weighted sum of vectors, of rows of which a tile of items is seen as well.

    CUT: the last items are beyond the catalogue.
    """
    top, total, mean = state
    item, column = tl.arange(0, ITEMS), tl.arange(0, D_BLOCK)
    place = first.to(tl.int64) * D + (item[:, None] * D + column[None])
    known = (column < D)[None]
    if CUT:
        known = known & (first + item < items)[:, None]
    vectors = tl.load(weight + place, mask=known, other=0.0)
    logits = tl.dot(factors, tl.trans(vectors)) * LOG2_E
    if SAMPLE:
        number = tl.load(numbers + first + item, mask=first + item < items, other=-1)
        added = tl.load(bias + first + item, mask=first + item < items, other=0.0)
        logits += added[None] * LOG2_E
        logits = tl.where(number[None] == target[:, None], float("-inf"), logits)
    if CUT:
        logits = tl.where((first + item < items)[None], logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    likely = tl.exp2(logits - higher[:, None])
    less = tl.exp2(top - higher)
    total = total * less + tl.sum(likely, 1)
    if MEAN:
        mean = tl.dot(likely.to(vectors.dtype), vectors, mean * less[:, None])
    return higher, total, mean


@triton.jit(do_not_specialize=["rows", "items", "tiles"])
def rows_kernel(
    hidden,
    weight,
    targets,
    numbers,
    bias,
    lse,
    means,
    rows,
    items,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    MEAN: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """Of each row and each part of the items: lse [parts, rows] and mean vector [parts, rows, D].

    A part has ``tiles`` tiles of items. MEAN: whether mean vectors are wanted. Targets, numbers and
    bias are those of a SAMPLE.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D_BLOCK)
    held = (row < rows)[:, None] & (column < D)[None]
    place = row.to(tl.int64)[:, None] * D + column[None]
    factors = tl.load(hidden + place, mask=held, other=0.0)
    target = tl.load(targets + row, mask=row < rows, other=-1) if SAMPLE else row
    first = tl.program_id(1) * tiles * ITEMS
    end = tl.minimum(first + tiles * ITEMS, items)
    whole = first + (end - first) // ITEMS * ITEMS
    top = tl.full([ROWS], -1.0e30, tl.float32)
    mean = tl.zeros([ROWS, D_BLOCK if MEAN else 1], tl.float32)
    state = (top, tl.zeros([ROWS], tl.float32), mean)
    for tile in range((whole - first) // ITEMS):
        state = _add_items(
            state,
            factors,
            target,
            weight,
            numbers,
            bias,
            first + tile * ITEMS,
            items,
            D,
            ITEMS,
            D_BLOCK,
            MEAN,
            SAMPLE,
            CUT=False,
        )
    if whole < end:
        state = _add_items(
            state,
            factors,
            target,
            weight,
            numbers,
            bias,
            whole,
            items,
            D,
            ITEMS,
            D_BLOCK,
            MEAN,
            SAMPLE,
            CUT=True,
        )
    top, total, mean = state
    part = tl.program_id(1).to(tl.int64) * rows
    tl.store(lse + part + row, (top + tl.log2(total)) * LOG_2, mask=row < rows)
    if MEAN:
        # Of a sample there may be nothing that counts.
        tl.store(means + part * D + place, mean / tl.maximum(total, LEAST)[:, None], mask=held)


@triton.jit(do_not_specialize=["rows", "items", "parts"])
def loss_kernel(
    hidden,
    weight,
    targets,
    partial,
    means,
    lse,
    losses,
    gradient,
    rows,
    items,
    parts,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    MEAN: tl.constexpr,
):
    """Over all items, from what there is of their parts: lse and losses [rows], gradient [rows, D].

    The gradient of a row's loss is the mean vector less the target's. Where there is no target
    nothing is likely and nothing is lost; one that is not among these items takes nothing away.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.arange(0, D_BLOCK)
    held = inside[:, None] & (column < D)[None]
    place = row.to(tl.int64)[:, None] * D + column[None]
    target = tl.load(targets + row, mask=inside, other=-1)
    counted = target >= 0
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, D_BLOCK], tl.float32)
    span = rows.to(tl.int64)
    for part in range(parts):
        first = part * span
        value = tl.load(partial + first + row, mask=inside, other=0.0)
        higher = tl.maximum(top, value)
        less, share = tl.exp(top - higher), tl.exp(value - higher)
        total = total * less + share
        if MEAN:
            vectors = tl.load(means + first * D + place, mask=held, other=0.0)
            mean = mean * less[:, None] + vectors * share[:, None]
        top = higher
    row_lse = top + tl.log(total)
    known = held & (counted & (target < items))[:, None]
    theirs = tl.load(weight + target[:, None] * D + column[None], mask=known, other=0.0)
    theirs = theirs.to(tl.float32)
    factors = tl.load(hidden + place, mask=held, other=0.0)
    loss = row_lse - tl.sum(factors.to(tl.float32) * theirs, 1)
    tl.store(losses + row, tl.where(counted, loss, 0.0), mask=inside)
    tl.store(lse + row, tl.where(counted, row_lse, float("inf")), mask=inside)
    if MEAN:
        mean = mean / tl.maximum(total, LEAST)[:, None]
        of_row = tl.where(counted[:, None], mean - theirs, 0.0)
        tl.store(gradient + place, of_row, mask=held)


@triton.jit
def _add_rows(
    total,
    vectors,
    number,
    added,
    hidden,
    targets,
    lse,
    shares,
    first,
    rows,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
    SAMPLE: tl.constexpr,
    CUT: tl.constexpr,
):
    """Gradient [ITEMS, D] of a tile of items, times UNIT, to which a tile of rows is added.

    SHARED: rows count as ``shares`` say, not alike. CUT: the last rows are not there.
    """
    row, column = first + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    place = first.to(tl.int64) * D + (tl.arange(0, ROWS)[:, None] * D + column[None])
    held, inside = (column < D)[None], None
    if CUT:
        inside = row < rows
        held = held & inside[:, None]
    factors = tl.load(hidden + place, mask=held, other=0.0)
    target = tl.load(targets + row, mask=inside)
    row_lse = tl.load(lse + row, mask=inside)
    if CUT:
        target = tl.where(inside, target, -1)
        row_lse = tl.where(inside, row_lse, float("inf"))
    logits = tl.dot(vectors, tl.trans(factors))
    if SAMPLE:
        logits += added[:, None]
    excess = tl.exp2(logits * LOG2_E - (row_lse * LOG2_E - SHIFT)[None])
    if SAMPLE:
        excess = tl.where(number[:, None] == target[None], 0.0, excess)
    else:
        excess -= tl.where(number[:, None] == target[None], UNIT, 0.0)
    if SHARED:
        share = tl.load(shares + row, mask=inside)
        if CUT:
            share = tl.where(inside, share, 0.0)
        excess *= share[None]
    return tl.dot(excess.to(factors.dtype), factors, total)


@triton.jit(do_not_specialize=["rows", "items", "tiles"])
def items_kernel(
    hidden,
    weight,
    targets,
    numbers,
    bias,
    lse,
    shares,
    gradients,
    rows,
    items,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """Gradient of the summed loss of each part of the rows, [parts, items, D].

    A part has ``tiles`` tiles of rows. Numbers and bias are those of a SAMPLE.
    """
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    column = tl.arange(0, D_BLOCK)
    known = (item < items)[:, None] & (column < D)[None]
    place = item.to(tl.int64)[:, None] * D + column[None]
    vectors = tl.load(weight + place, mask=known, other=0.0)
    if SAMPLE:
        number = tl.load(numbers + item, mask=item < items, other=-1)
        added = tl.load(bias + item, mask=item < items, other=0.0)
    else:
        number, added = item, item
    first = tl.program_id(1) * tiles * ROWS
    end = tl.minimum(first + tiles * ROWS, rows)
    whole = first + (end - first) // ROWS * ROWS
    total = tl.zeros([ITEMS, D_BLOCK], tl.float32)
    for tile in range((whole - first) // ROWS):
        total = _add_rows(
            total,
            vectors,
            number,
            added,
            hidden,
            targets,
            lse,
            shares,
            first + tile * ROWS,
            rows,
            D,
            ROWS,
            D_BLOCK,
            SHARED,
            SAMPLE,
            CUT=False,
        )
    if whole < end:
        total = _add_rows(
            total,
            vectors,
            number,
            added,
            hidden,
            targets,
            lse,
            shares,
            whole,
            rows,
            D,
            ROWS,
            D_BLOCK,
            SHARED,
            SAMPLE,
            CUT=True,
        )
    part = tl.program_id(1).to(tl.int64) * items * D
    tl.store(gradients + part + place, total / UNIT, mask=known)
