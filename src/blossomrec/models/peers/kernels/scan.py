# type: ignore -- the bodies are Triton, which Python's types do not describe
"""The selective scan in chunks of packed events: a program takes a chunk of a few channels.

Inside of a chunk all events are scanned together, one number of the state after the other. From
chunk to chunk what is left of the state, and of its gradient, is carried by a kernel of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _then(decay, state, next_decay, next_state):
    """Two steps of h -> decay * h + state as one."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _chunk(total, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Events and channels of a program, which of them there are, and where they stand in [T, E]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < total)[:, None] & (column < channels)[None]
    return row, column, inside, row.to(tl.int64)[:, None] * channels + column[None]


@triton.jit
def _next(delta, goes_on, row, column, place, total, channels, ROWS: tl.constexpr):
    """Steps of the next events of a chunk, 0 behind its last one, and whether they go on."""
    there = (row + 1 < total) & (tl.arange(0, ROWS) < ROWS - 1)
    mask = there[:, None] & (column < channels)[None]
    steps = tl.load(delta + place + channels, mask=mask, other=0.0)
    return steps, tl.load(goes_on + row + 1, mask=there, other=1.0)


@triton.jit
def ends_kernel(
    u,
    delta,
    rates,
    b,
    goes_on,
    ends,
    left,
    total,
    channels,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each chunk the state that its own events leave, and what is left of the one before it."""
    row, column, inside, place = _chunk(total, channels, ROWS, COLUMNS)
    steps = tl.load(delta + place, mask=inside, other=0.0)
    added = steps * tl.load(u + place, mask=inside, other=0.0)
    on = tl.load(goes_on + row, mask=row < total, other=1.0)
    next_steps, next_on = _next(delta, goes_on, row, column, place, total, channels, ROWS)
    # Behind an event: steps, and starts of histories, until the end of the chunk.
    behind = tl.cumsum(next_steps, 0, reverse=True)
    kept = (tl.cumsum(1.0 - next_on, 0, reverse=True) == 0.0)[:, None]
    whole = tl.sum(steps, 0)
    no_start = tl.sum(1.0 - on, 0) == 0.0
    out = (tl.program_id(0).to(tl.int64) * channels + column) * size
    for n in range(size):
        rate = tl.load(rates + column * size + n, mask=column < channels, other=0.0)
        of_b = tl.load(b + row.to(tl.int64) * size + n, mask=row < total, other=0.0)
        each = tl.where(kept, tl.exp(behind * rate[None]), 0.0) * added * of_b[:, None]
        tl.store(ends + out + n, tl.sum(each, 0), mask=column < channels)
        rest = tl.where(no_start, tl.exp(whole * rate), 0.0)
        tl.store(left + out + n, rest, mask=column < channels)


@triton.jit
def slopes_kernel(
    grad,
    delta,
    rates,
    c,
    goes_on,
    slopes,
    total,
    channels,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each chunk the gradient that its own events give the state before it."""
    row, column, inside, place = _chunk(total, channels, ROWS, COLUMNS)
    steps = tl.load(delta + place, mask=inside, other=0.0)
    slope = tl.load(grad + place, mask=inside, other=0.0)
    on = tl.load(goes_on + row, mask=row < total, other=1.0)
    ahead = tl.cumsum(steps, 0)
    kept = (tl.cumsum(1.0 - on, 0) == 0.0)[:, None]
    out = (tl.program_id(0).to(tl.int64) * channels + column) * size
    for n in range(size):
        rate = tl.load(rates + column * size + n, mask=column < channels, other=0.0)
        of_c = tl.load(c + row.to(tl.int64) * size + n, mask=row < total, other=0.0)
        each = tl.where(kept, tl.exp(ahead * rate[None]), 0.0) * slope * of_c[:, None]
        tl.store(slopes + out + n, tl.sum(each, 0), mask=column < channels)


@triton.jit
def carry_kernel(ends, left, chunks, numbers, BACK: tl.constexpr, BLOCK: tl.constexpr):
    """What comes into each chunk, in place of ``ends`` [chunks, numbers]; from the end if BACK."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    carried = tl.zeros([BLOCK], tl.float32)
    for number in range(chunks):
        chunk = chunks - 1 - number if BACK else number
        here = chunk.to(tl.int64) * numbers + place
        own = tl.load(ends + here, mask=place < numbers, other=0.0)
        rest = tl.load(left + here, mask=place < numbers, other=0.0)
        tl.store(ends + here, carried, mask=place < numbers)
        carried = rest * carried + own


@triton.jit
def scan_kernel(
    u,
    delta,
    rates,
    b,
    c,
    goes_on,
    carried,
    out,
    total,
    channels,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, column, inside, place = _chunk(total, channels, ROWS, COLUMNS)
    steps = tl.load(delta + place, mask=inside, other=0.0)
    added = steps * tl.load(u + place, mask=inside, other=0.0)
    on = tl.load(goes_on + row, mask=row < total, other=1.0)[:, None]
    before = (tl.program_id(0).to(tl.int64) * channels + column) * size
    seen = tl.zeros([ROWS, COLUMNS], tl.float32)
    for n in range(size):
        rate = tl.load(rates + column * size + n, mask=column < channels, other=0.0)
        of_b = tl.load(b + row.to(tl.int64) * size + n, mask=row < total, other=0.0)
        of_c = tl.load(c + row.to(tl.int64) * size + n, mask=row < total, other=0.0)
        first = tl.load(carried + before + n, mask=column < channels, other=0.0)
        decay, state = tl.associative_scan(
            (tl.exp(steps * rate[None]) * on, added * of_b[:, None]), 0, _then
        )
        seen += (state + decay * first[None]) * of_c[:, None]
    tl.store(out + place, seen, mask=inside)


@triton.jit
def scan_backward_kernel(
    grad,
    u,
    delta,
    rates,
    b,
    c,
    goes_on,
    carried,
    follows,
    grad_u,
    grad_delta,
    grad_rates,
    grad_b,
    grad_c,
    total,
    channels,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients; those of the rates by chunk [chunks, E, N], of b and c by program [., T, N]."""
    row, column, inside, place = _chunk(total, channels, ROWS, COLUMNS)
    steps = tl.load(delta + place, mask=inside, other=0.0)
    given = tl.load(u + place, mask=inside, other=0.0)
    slope = tl.load(grad + place, mask=inside, other=0.0)
    on = tl.load(goes_on + row, mask=row < total, other=1.0)[:, None]
    # The gradient that comes into a chunk has passed the first event behind it already.
    next_steps, next_on = _next(delta, goes_on, row, column, place, total, channels, ROWS)
    before = (tl.program_id(0).to(tl.int64) * channels + column) * size
    shares = (tl.program_id(1).to(tl.int64) * total + row) * size
    by_added = tl.zeros([ROWS, COLUMNS], tl.float32)
    by_steps = tl.zeros([ROWS, COLUMNS], tl.float32)
    for n in range(size):
        rate = tl.load(rates + column * size + n, mask=column < channels, other=0.0)
        of_b = tl.load(b + row.to(tl.int64) * size + n, mask=row < total, other=0.0)[:, None]
        of_c = tl.load(c + row.to(tl.int64) * size + n, mask=row < total, other=0.0)[:, None]
        first = tl.load(carried + before + n, mask=column < channels, other=0.0)
        after = tl.load(follows + before + n, mask=column < channels, other=0.0)
        own = steps * given * of_b
        decay, state = tl.associative_scan((tl.exp(steps * rate[None]) * on, own), 0, _then)
        state += decay * first[None]
        back, by_state = tl.associative_scan(
            (tl.exp(next_steps * rate[None]) * next_on[:, None], slope * of_c),
            0,
            _then,
            reverse=True,
        )
        by_state += back * after[None]
        tl.store(grad_c + shares + n, tl.sum(slope * state, 1), mask=row < total)
        tl.store(grad_b + shares + n, tl.sum(steps * given * by_state, 1), mask=row < total)
        by_added += by_state * of_b
        # What is left of the state before: exactly 0 where a history starts.
        kept = by_state * (state - own)
        by_steps += kept * rate[None]
        tl.store(grad_rates + before + n, tl.sum(kept * steps, 0), mask=column < channels)
    tl.store(grad_u + place, by_added * steps, mask=inside)
    tl.store(grad_delta + place, by_added * given + by_steps, mask=inside)
