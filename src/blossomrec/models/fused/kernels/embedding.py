# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Sums of rows that have the same key, where the keys are sorted, in an order that is always the
same.

A program adds up a few rows that follow each other. What belongs to a key with which an earlier
program ended is *carried*: it is added when all programs are through.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "given"])
def row_sums_kernel(
    keys,
    order,
    gradient,
    sums,
    carried,
    count,
    given,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of the keys that begin among ROWS sorted ones, and of the rest of another, [D] each.

    The key of the n-th in order belongs to the row ``order[n]`` of the gradient [given, D]; where
    there is no such row it adds nothing.
    """
    number = tl.arange(0, ROWS)
    place = tl.program_id(0) * ROWS + number
    inside = place < count
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place, mask=inside, other=-1)
    before = tl.load(keys + place - 1, mask=inside & (place > 0), other=-1)
    row = tl.load(order + place, mask=inside, other=0)
    held = inside[:, None] & (column < D)[None]
    there = held & (row < given)[:, None]
    rows = tl.load(gradient + row[:, None] * D + column[None], mask=there, other=0.0)
    same = (key[:, None] == key[None]).to(tl.float32)
    total = tl.dot(same, rows.to(tl.float32), input_precision="ieee")
    begins = (key != before)[:, None]
    tl.store(sums + key.to(tl.int64)[:, None] * D + column[None], total, mask=held & begins)
    # Only the first can belong to an earlier one.
    rest = carried + tl.program_id(0).to(tl.int64) * D + column[None] + number[:, None] * 0
    tl.store(rest, total, mask=held & (number == 0)[:, None] & (key == before)[:, None])


@triton.jit(do_not_specialize=["count"])
def carried_sums_kernel(
    keys,
    carried,
    sums,
    count,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add what was carried, [parts, D], to the sum of its key, PARTS at a time."""
    part = tl.program_id(0) + 1
    first = part * ROWS
    key = tl.load(keys + first)
    before = tl.load(keys + first - 1)
    # Whether the part before carries for this key, too, and its program adds up this one.
    earlier = tl.load(keys + first - ROWS - 1, mask=part > 1, other=-1)
    if (key == before) & (key != earlier):
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        known = column < D
        place = sums + key.to(tl.int64) * D + column
        total = tl.load(place, mask=known, other=0.0)
        there = key
        while there == key:
            parts = part + tl.arange(0, PARTS)
            theirs = tl.load(keys + parts * ROWS, mask=parts * ROWS < count, other=-1) == key
            held = theirs[:, None] & known[None]
            rest = carried + parts.to(tl.int64)[:, None] * D + column[None]
            total += tl.sum(tl.load(rest, mask=held, other=0.0), 0)
            part += PARTS
            there = tl.load(keys + part * ROWS, mask=part * ROWS < count, other=-1)
        tl.store(place, total, mask=known)
