# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Kernels that find where histories, their blocks and tiles begin in a packed batch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def entries_below(numbers, count, value, STEPS: tl.constexpr):
    """How many of the rising ``numbers`` [count] are less than ``value``, one or many."""
    low = value * 0
    high = low + count
    for _ in range(STEPS):
        middle = (low + high) // 2
        open = low < high
        less = tl.load(numbers + middle, mask=open, other=0).to(tl.int64) < value
        high = tl.where(open & (less == 0), middle, high)
        low = tl.where(open & less, middle + 1, low)
    return low


@triton.jit(do_not_specialize=["histories"])
def bounds_kernel(
    cu_seqlens, bounds, histories, TILE: tl.constexpr, S: tl.constexpr, HISTORIES: tl.constexpr
):
    """Where the tiles and the blocks of each history begin, and their numbers, [2, B+1]."""
    tiles, blocks = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    tl.store(bounds, tiles)
    tl.store(bounds + histories + 1, blocks)
    for first in range(0, histories, HISTORIES):
        history = first + tl.arange(0, HISTORIES)
        inside = history < histories
        start = tl.load(cu_seqlens + history, mask=inside, other=0).to(tl.int64)
        length = tl.load(cu_seqlens + history + 1, mask=inside, other=0).to(tl.int64) - start
        cut, complete = (length + TILE - 1) // TILE, length // S
        tl.store(bounds + history + 1, tiles + tl.cumsum(cut, 0), mask=inside)
        place = bounds + histories + 2 + history
        tl.store(place, blocks + tl.cumsum(complete, 0), mask=inside)
        tiles += tl.sum(cut, 0)
        blocks += tl.sum(complete, 0)


@triton.jit(do_not_specialize=["histories", "tiles"])
def tiles_kernel(
    cu_seqlens, bounds, table, histories, tiles, STEPS: tl.constexpr, ANSWERS: tl.constexpr
):
    """The fields of ``geometry.tile_table``."""
    number = (tl.program_id(0) * ANSWERS + tl.arange(0, ANSWERS)).to(tl.int64)
    inside = number < tiles
    history = entries_below(bounds + 1, histories, number + 1, STEPS)
    used = history < histories
    history = tl.where(used, history, 0)
    start = tl.load(cu_seqlens + history).to(tl.int64)
    length = tl.load(cu_seqlens + history + 1).to(tl.int64) - start
    fields = table + number * 5
    tl.store(fields, start.to(tl.int32), mask=inside)
    tl.store(fields + 1, tl.where(used, length, 0).to(tl.int32), mask=inside)
    tl.store(fields + 2, (number - tl.load(bounds + history)).to(tl.int32), mask=inside)
    tl.store(fields + 3, history.to(tl.int32), mask=inside)
    first = tl.load(bounds + histories + 1 + history)
    tl.store(fields + 4, first.to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["histories", "blocks"])
def blocks_kernel(
    cu_seqlens,
    bounds,
    starts,
    numbers,
    histories,
    blocks,
    S: tl.constexpr,
    NONE: tl.constexpr,
    STEPS: tl.constexpr,
    ANSWERS: tl.constexpr,
):
    """First packed row and number of each complete block."""
    place = (tl.program_id(0) * ANSWERS + tl.arange(0, ANSWERS)).to(tl.int64)
    inside = place < blocks
    history = entries_below(bounds + histories + 2, histories, place + 1, STEPS)
    used = history < histories
    history = tl.where(used, history, 0)
    number = place - tl.load(bounds + histories + 1 + history)
    start = tl.load(cu_seqlens + history).to(tl.int64) + number * S
    tl.store(starts + place, tl.where(used, start, 0), mask=inside)
    tl.store(numbers + place, tl.where(used, number, NONE), mask=inside)


@triton.jit(do_not_specialize=["histories", "rows"])
def angles_kernel(
    cu_seqlens,
    frequencies,
    angles,
    histories,
    rows,
    PAIRS: tl.constexpr,
    PLACES: tl.constexpr,
    STEPS: tl.constexpr,
    ANSWERS: tl.constexpr,
):
    """Position of each packed row times each frequency, float32 [rows, PAIRS]."""
    row = (tl.program_id(0) * ANSWERS + tl.arange(0, ANSWERS)).to(tl.int64)
    inside = row < rows
    history = entries_below(cu_seqlens + 1, histories, row + 1, STEPS)
    history = tl.where(history < histories, history, 0)
    position = (row - tl.load(cu_seqlens + history)).to(tl.float32)
    pair = tl.arange(0, PLACES)[None]
    frequency = tl.load(frequencies + pair, mask=pair < PAIRS, other=0.0)
    target = angles + row[:, None] * PAIRS + pair
    held = inside[:, None] & (pair < PAIRS)
    tl.store(target, position[:, None] * frequency, mask=held)
