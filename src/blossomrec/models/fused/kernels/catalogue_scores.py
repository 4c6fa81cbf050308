# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Scores of a catalogue tile by tile: no more than a bound for each group is written.

LANES groups lie side by side in a stripe of GROUP * LANES neighbouring items, and each takes every
LANES-th of them. In the result of a matrix product a thread then holds whole groups of a row, or
two, so that a maximum needs no other thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["users", "stripes", "each"])
def group_bounds_kernel(
    rounded,
    table,
    offsets,
    units,
    query_sizes,
    query_errors,
    group_sizes,
    group_errors,
    upper,
    users,
    stripes,
    each,
    rounding,
    D_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
):
    """What no score of a group exceeds, [users, stripes * LANES]; a program has ``each`` stripes.

    rounded [users, D_BLOCK] and table [stripes * GROUP * LANES, D_BLOCK] are in 16 bits;
    sizes are norms of what they stand for, and errors those of what rounding took.
    """
    tiles: tl.constexpr = GROUP * LANES // ITEMS
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    held = row < users
    place = row.to(tl.int64)[:, None] * D_BLOCK + column[None]
    factors = tl.load(rounded + place, mask=held[:, None], other=0.0)
    unit = tl.load(units + row, mask=held, other=0.0)
    size = tl.load(query_sizes + row, mask=held, other=0.0)
    error = tl.load(query_errors + row, mask=held, other=0.0)
    item, lane = tl.arange(0, ITEMS), tl.arange(0, LANES)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, stripes)
    out = upper + row.to(tl.int64)[:, None] * (stripes * LANES) + lane[None]
    top = tl.full([ROWS, LANES], float("-inf"), tl.float32)
    for tile in range((last - first) * tiles):
        start = first * tiles + tile
        span = start.to(tl.int64) * (ITEMS * D_BLOCK)
        vectors = tl.load(table + span + (item[:, None] * D_BLOCK + column[None]))
        offset = tl.load(offsets + start * ITEMS + item)
        scores = tl.dot(factors, tl.trans(vectors)) * unit[:, None] + offset[None]
        scores = tl.reshape(scores, [ROWS, ITEMS // LANES, LANES])
        top = tl.maximum(top, tl.max(scores, 1))
        if start % tiles == tiles - 1:
            group = start // tiles * LANES
            group_size = tl.load(group_sizes + group + lane)[None]
            group_error = tl.load(group_errors + group + lane)[None]
            bound = top + (size[:, None] * group_error + error[:, None] * group_size)
            # Of adding an offset; -inf stays what it is.
            bound = tl.maximum(bound * (1 + rounding), bound * (1 - rounding))
            tl.store(out + group, bound, mask=held[:, None])
            top = tl.full([ROWS, LANES], float("-inf"), tl.float32)


@triton.jit(do_not_specialize=["items", "count"])
def group_scores_kernel(
    queries,
    vectors,
    offsets,
    chosen,
    scores,
    items,
    count,
    lowest,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
):
    """Scores of the items of ``count`` groups of each user, [users, count, GROUP], in float32.

    A group is a program of its own, so that a score depends on nothing but its two vectors.
    """
    program = tl.program_id(0).to(tl.int64)
    column, inside = tl.arange(0, D_BLOCK), tl.arange(0, GROUP)
    number = tl.load(chosen + program)
    group = tl.maximum(number, 0)
    item = group // LANES * (GROUP * LANES) + group % LANES + inside * LANES
    there = item < tl.where(number < 0, 0, items)
    known = (column < D)[None] & there[:, None]
    query = tl.load(queries + program // count * D + column, mask=column < D, other=0.0)
    theirs = tl.load(vectors + item[:, None] * D + column[None], mask=known, other=0.0)
    found = tl.sum(theirs.to(tl.float32) * query[None], 1)
    # Items that are not left out stay above -inf; what is not a number stays that.
    found = tl.where(found < lowest, lowest, found)
    found += tl.load(offsets + item, mask=there, other=float("-inf"))
    tl.store(scores + program * GROUP + inside, found)


@triton.jit(do_not_specialize=["users", "items", "tiles"])
def lse_kernel(
    rounded,
    rests,
    table,
    table_rests,
    units,
    lse,
    users,
    items,
    tiles,
    rest_unit,
    D_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
):
    """Logarithms of summed exponentials of scores, [parts, users]; a part has ``tiles`` tiles.

    Rests are what rounding took from both sides, in 16 bits; with them a score is one of float32,
    but for the product of two rests.
    """
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    held = row < users
    place = row.to(tl.int64)[:, None] * D_BLOCK + column[None]
    factors = tl.load(rounded + place, mask=held[:, None], other=0.0)
    factor_rests = tl.load(rests + place, mask=held[:, None], other=0.0)
    unit = tl.load(units + row, mask=held, other=0.0) * LOG2_E
    item = tl.arange(0, ITEMS)
    first = tl.program_id(1) * tiles
    last = tl.minimum(first + tiles, tl.cdiv(items, ITEMS))
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for tile in range(last - first):
        start = (first + tile) * ITEMS
        inside = start.to(tl.int64) * D_BLOCK + (item[:, None] * D_BLOCK + column[None])
        vectors = tl.trans(tl.load(table + inside))
        vector_rests = tl.trans(tl.load(table_rests + inside))
        small = tl.dot(factors, vector_rests)
        small = tl.dot(factor_rests, vectors, small)
        scores = (tl.dot(factors, vectors) + small * rest_unit) * unit[:, None]
        scores = tl.where((start + item < items)[None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
        top = higher
    part = tl.program_id(1).to(tl.int64) * users
    tl.store(lse + part + row, (top + tl.log2(total)) * LOG_2, mask=held)
