# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Distinct numbers among many that are sorted, as ``training.sparse.distinct`` defines them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def new_numbers_kernel(rising, new, count, BLOCK: tl.constexpr):
    """1 where a number is another one than that before it, 0 elsewhere and for the first."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    held = place < count
    here = tl.load(rising + place, mask=held)
    before = tl.load(rising + place - 1, mask=held & (place > 0), other=-1)
    tl.store(new + place, ((here != before) & (place > 0)).to(tl.int32), mask=held)


@triton.jit(do_not_specialize=["count", "room"])
def distinct_kernel(rising, order, rank, rows, own, places, count, room, BLOCK: tl.constexpr):
    """Each distinct number at its rank and, of all that were given, the rank of each.

    Behind the distinct ones stands the first, in all of ``room``.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    held = place < count
    here = tl.load(rising + place, mask=held, other=0)
    before = tl.load(rising + place - 1, mask=held & (place > 0), other=-1)
    number = tl.load(rank + place, mask=held, other=0)
    there = tl.load(order + place, mask=held, other=0)
    tl.store(places + there, number.to(tl.int64), mask=held)
    tl.store(rows + number, here.to(tl.int64), mask=held & (here != before))
    known = tl.load(rank + count - 1) + 1
    spare = (place >= known) & (place < room)
    tl.store(rows + place, tl.load(rising + place * 0, mask=spare).to(tl.int64), mask=spare)
    tl.store(own + place, tl.where(spare, 0, place).to(tl.int64), mask=place < room)
