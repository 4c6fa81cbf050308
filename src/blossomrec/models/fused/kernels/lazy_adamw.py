# type: ignore -- the bodies are Triton, which Python's types do not describe
"""AdamW of the rows of a table that a step needs: what a row is, read once and written once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(rows, own, count, D: tl.constexpr, ROWS: tl.constexpr, D_BLOCK: tl.constexpr):
    """Of a tile of slots: the row of each, whether it is the first with that row, where the row's
    numbers are, and whether these are there."""
    slot, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    row = tl.load(rows + slot, mask=slot < count, other=0)
    first = (slot < count) & (tl.load(own + slot, mask=slot < count, other=-1) == slot)
    place = row[:, None] * D + column[None]
    return row, first, place, first[:, None] & (column < D)[None]


@triton.jit
def _direction(mean, square, step, EPS: tl.constexpr, LOG_SECOND: tl.constexpr):
    """What rows go along after ``step`` steps, [ROWS] or a number."""
    return mean / (tl.sqrt(square) + EPS * tl.sqrt(1.0 - tl.exp2(step * LOG_SECOND)))


@triton.jit(do_not_specialize=["count"])
def catch_up_kernel(
    rows,
    own,
    weight,
    means,
    squares,
    average,
    seen,
    updates,
    steps,
    moved,
    left,
    behind,
    out,
    count,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    LOG_FIRST: tl.constexpr,
    LOG_SECOND: tl.constexpr,
    AVERAGE: tl.constexpr,
):
    """Bring rows up to date, as ``RowTable`` defines it: what they did not follow is known by age.

    LOG_FIRST, LOG_SECOND: logarithms to base 2 of the betas. AVERAGE: whether there is one. The
    rows go to ``out`` [count, D] as well, each to its first slot.
    """
    row, first, place, held = _rows(rows, own, count, D, ROWS, D_BLOCK)
    now = tl.load(updates)
    age = now - tl.load(seen + row, mask=first, other=0)
    age = tl.where(first, age, 0)
    skipped = age.to(tl.float32)
    vectors = tl.load(weight + place, mask=held, other=0.0)
    mean = tl.load(means + place, mask=held, other=0.0)
    square = tl.load(squares + place, mask=held, other=0.0)
    # A row without any gradient so far does not move, whatever it is divided by.
    step = tl.maximum(tl.load(steps) - skipped, 1.0)
    direction = _direction(mean, square, step[:, None], EPS, LOG_SECOND)
    if AVERAGE:
        share = tl.load(left + age).to(tl.float32)[:, None]
        later = tl.load(average + place, mask=held, other=0.0) * share + (1.0 - share) * vectors
        later -= tl.load(behind + age).to(tl.float32)[:, None] * direction
        tl.store(average + place, later, mask=held)
    vectors -= tl.load(moved + age).to(tl.float32)[:, None] * direction
    tl.store(weight + place, vectors, mask=held)
    slot, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    theirs = out + slot.to(tl.int64)[:, None] * D + column[None]
    tl.store(theirs, vectors, mask=(slot < count)[:, None] & (column < D)[None])
    tl.store(means + place, mean * tl.exp2(skipped * LOG_FIRST)[:, None], mask=held)
    tl.store(squares + place, square * tl.exp2(skipped * LOG_SECOND)[:, None], mask=held)
    tl.store(seen + row, tl.zeros([ROWS], tl.int64) + now, mask=first)


@triton.jit(do_not_specialize=["ages"])
def age_kernel(
    updates,
    steps,
    rate,
    moved,
    left,
    behind,
    now,
    ages,
    BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    FACTOR: tl.constexpr,
    DECAY: tl.constexpr,
    AVERAGE: tl.constexpr,
):
    """Count a step, and let what is known by age be that after it, all in one program.

    FIRST, SECOND: natural logarithms of the betas. ``now`` [2] gets how far rows go along their
    direction, at FACTOR times the rate, and the decay of the average, at most DECAY.
    """
    update = tl.load(updates) + 1
    step = tl.load(steps) + 1.0
    count, taken = step.to(tl.float64), update.to(tl.float64)
    correction = tl.sqrt(1.0 - tl.exp(count * SECOND)) / (1.0 - tl.exp(count * FIRST))
    force = tl.load(rate).to(tl.float64) * FACTOR * correction
    # Not as a number of 32 bits.
    decay = tl.minimum((1.0 + taken) / (10.0 + taken), tl.full([], DECAY, tl.float64))
    # What is known of an age goes to the next one.
    age = tl.arange(0, BLOCK)
    older = age + 1 < ages
    shrunk = tl.exp((age + 1).to(tl.float64) * (FIRST - 0.5 * SECOND))
    far = tl.load(moved + age, mask=older, other=0.0) + force * shrunk
    if AVERAGE:
        kept = decay * tl.load(left + age, mask=older, other=0.0)
        rest = decay * tl.load(behind + age, mask=older, other=0.0) + (1.0 - decay) * far
    # All is read before anything is written.
    tl.debug_barrier()
    tl.store(moved + age + 1, far, mask=older)
    if AVERAGE:
        tl.store(left + age + 1, kept, mask=older)
        tl.store(behind + age + 1, rest, mask=older)
    tl.store(updates, update)
    tl.store(steps, step)
    tl.store(now, force)
    tl.store(now + 1, decay)


@triton.jit(do_not_specialize=["count"])
def step_kernel(
    rows,
    own,
    weight,
    means,
    squares,
    average,
    seen,
    updates,
    steps,
    gradient,
    now,
    count,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    LOG_SECOND: tl.constexpr,
    AVERAGE: tl.constexpr,
):
    """A step of rows that are up to date by their gradient [count, D], which stands at the slots.

    FIRST, SECOND: the betas. ``now`` [2] is how far rows go along their direction, and the decay of
    the average.
    """
    row, first, place, held = _rows(rows, own, count, D, ROWS, D_BLOCK)
    slot, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    given = tl.load(gradient + slot.to(tl.int64)[:, None] * D + column[None], mask=held, other=0.0)
    vectors = tl.load(weight + place, mask=held, other=0.0)
    mean = tl.load(means + place, mask=held, other=0.0)
    square = tl.load(squares + place, mask=held, other=0.0)
    mean += (1.0 - FIRST) * (given - mean)
    square = SECOND * square + (1.0 - SECOND) * given * given
    direction = _direction(mean, square, tl.load(steps), EPS, LOG_SECOND)
    vectors -= direction * tl.load(now).to(tl.float32)
    tl.store(weight + place, vectors, mask=held)
    tl.store(means + place, mean, mask=held)
    tl.store(squares + place, square, mask=held)
    if AVERAGE:
        later = tl.load(average + place, mask=held, other=0.0)
        later += (1.0 - tl.load(now + 1).to(tl.float32)) * (vectors - later)
        tl.store(average + place, later, mask=held)
    tl.store(seen + row, tl.zeros([ROWS], tl.int64) + tl.load(updates), mask=first)
