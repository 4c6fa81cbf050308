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

    LOG_FIRST, LOG_SECOND: logarithms to base 2 of the betas. AVERAGE: whether there is one.
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
    tl.store(means + place, mean * tl.exp2(skipped * LOG_FIRST)[:, None], mask=held)
    tl.store(squares + place, square * tl.exp2(skipped * LOG_SECOND)[:, None], mask=held)
    tl.store(seen + row, tl.zeros([ROWS], tl.int64) + now, mask=first)


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
    force,
    decay,
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

    FIRST, SECOND: the betas. ``force`` is how far rows go along their direction, ``decay`` that of
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
    vectors -= direction * tl.load(force).to(tl.float32)
    tl.store(weight + place, vectors, mask=held)
    tl.store(means + place, mean, mask=held)
    tl.store(squares + place, square, mask=held)
    if AVERAGE:
        later = tl.load(average + place, mask=held, other=0.0)
        later += (1.0 - tl.load(decay).to(tl.float32)) * (vectors - later)
        tl.store(average + place, later, mask=held)
    tl.store(seen + row, tl.zeros([ROWS], tl.int64) + tl.load(updates), mask=first)
