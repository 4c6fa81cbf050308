# type: ignore -- the bodies are Triton, which Python's types do not describe
"""What is seen of events, as rows of zeros, ones and numbers, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

HOUR, HOURS, WEEK = tl.constexpr(3_600), tl.constexpr(24), tl.constexpr(168)
# 1970 began on a Thursday, the week does on a Monday.
FIRST_HOUR = tl.constexpr(72)


@triton.jit(do_not_specialize=["total"])
def event_columns_kernel(
    gap,
    seconds,
    kinds,
    context,
    users,
    bounds,
    offsets,
    few_columns,
    number_columns,
    scales,
    out,
    total,
    BOUNDS: tl.constexpr,
    BOUND_BLOCK: tl.constexpr,
    HAS_GAP: tl.constexpr,
    HAS_CLOCK: tl.constexpr,
    HAS_KINDS: tl.constexpr,
    CLOCK: tl.constexpr,
    KINDS: tl.constexpr,
    FEW: tl.constexpr,
    NUMBERS: tl.constexpr,
    FIRST_NUMBER: tl.constexpr,
    CONTEXT: tl.constexpr,
    USERS: tl.constexpr,
    FIRST_USER: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program makes ``ROWS`` rows of [total, WIDTH]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < total
    column = tl.arange(0, BLOCK)[None]
    chosen = tl.zeros([ROWS, BLOCK], tl.float32)
    if HAS_GAP:
        # The bucket is how many of the buckets' starts are not above the gap.
        value = tl.load(gap + row, mask=inside, other=-1)
        bound = tl.arange(0, BOUND_BLOCK)[None]
        start = tl.load(bounds + bound, mask=bound < BOUNDS, other=0)
        reached = (start <= value[:, None]) & (bound < BOUNDS)
        chosen += (column == tl.sum(reached.to(tl.int32), 1)[:, None]).to(tl.float32)
    if HAS_CLOCK:
        # A time before 1970 stands for none: rounded down as those after it.
        value = tl.load(seconds + row, mask=inside, other=0)
        hours = value // HOUR
        hours = tl.where(hours * HOUR > value, hours - 1, hours) + FIRST_HOUR
        week = hours % WEEK
        week = tl.where(week < 0, week + WEEK, week)
        hour, day = week % HOURS, week // HOURS
        chosen += (column == (hour + CLOCK)[:, None]).to(tl.float32)
        chosen += (column == (day + (CLOCK + HOURS))[:, None]).to(tl.float32)
    if HAS_KINDS:
        value = tl.load(kinds + row, mask=inside, other=0)
        chosen += (column == (value + KINDS)[:, None]).to(tl.float32)
    for number in tl.static_range(FEW):
        place = tl.load(few_columns + number)
        value = tl.load(context + row * CONTEXT + place, mask=inside, other=0.0)
        value = tl.where(value == value, value, 0.0).to(tl.int64) + tl.load(offsets + number)
        chosen += (column == value[:, None]).to(tl.float32)
    for number in tl.static_range(NUMBERS):
        place = tl.load(number_columns + number)
        value = tl.load(context + row * CONTEXT + place, mask=inside, other=0.0)
        mean, deviation = tl.load(scales + 2 * number), tl.load(scales + 2 * number + 1)
        value = tl.where(value == value, (value - mean) / deviation, 0.0)
        chosen = tl.where(column == FIRST_NUMBER + number, value[:, None], chosen)
    if USERS:
        mine = (column >= FIRST_USER) & (column < FIRST_USER + USERS)
        place = users + row[:, None] * USERS + (column - FIRST_USER)
        value = tl.load(place, mask=inside[:, None] & mine, other=0.0)
        chosen = tl.where(mine, value.to(tl.float32), chosen)
    place = out + row[:, None] * WIDTH + column
    tl.store(place, chosen.to(out.dtype.element_ty), mask=inside[:, None] & (column < WIDTH))
