# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Scores of a catalogue tile by tile: no more than a bound for each group is written.

LANES groups lie side by side in a stripe of GROUP * LANES neighbouring items, and each takes every
LANES-th of them. In the result of a matrix product a thread then holds whole groups of a row, or
two, so that a maximum needs no other thread.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
