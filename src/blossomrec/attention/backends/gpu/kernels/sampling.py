# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Drawing the events of the distillation where the lengths are known."""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.gpu.kernels.geometry import entries_below


@triton.jit(do_not_specialize=["candidates", "histories"])
def choices_kernel(
    rows,
    cu_seqlens,
    lows,
    counts,
    candidates,
    histories,
    S: tl.constexpr,
    TOP_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    HISTORIES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Where in ``rows`` those of each history begin that have more than TOP_N eligible blocks.

    They are the last ones of their history; ``counts`` is how many they are.
    """
    history = tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)
    inside = history < histories
    start = tl.load(cu_seqlens + history, mask=inside, other=0).to(tl.int64)
    end = tl.load(cu_seqlens + history + 1, mask=inside, other=0).to(tl.int64)
    length = end - start
    if CAUSAL:
        first = tl.minimum(length, (TOP_N + 1) * S)
    else:
        blocks = length // S
        # With one block more than are selected, all are eligible only from outside of them.
        outside = tl.where(blocks == TOP_N + 1, blocks * S, length)
        first = tl.where(blocks > TOP_N + 1, 0, outside)
    low = entries_below(rows, candidates, start + first, STEPS)
    high = entries_below(rows, candidates, end, STEPS)
    tl.store(lows + history, low, mask=inside)
    tl.store(counts + history, high - low, mask=inside)


@triton.jit(do_not_specialize=["histories", "count"])
def draw_kernel(
    drawn,
    rows,
    cu_seqlens,
    first_blocks,
    lows,
    counts,
    ends,
    samples,
    owns,
    numbers,
    starts,
    firsts,
    histories,
    count,
    S: tl.constexpr,
    PLACES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One program draws one run: a history by its rows, then ``count`` of these.

    Draws are stratified: the i-th of n is from the i-th of n equal parts. ends: sums of ``counts``
    up to each history.
    """
    run = tl.program_id(0)
    usable = tl.load(ends + histories - 1)
    drawn += run * (count + 1)
    share = (tl.load(drawn).to(tl.float64) + run) / tl.num_programs(0)
    history = entries_below(ends, histories, (share * usable).to(tl.int64) + 1, STEPS)
    # Where there is nothing to draw from, row 0 in a history without blocks: it counts nothing.
    held = history < histories
    history = tl.where(held, history, 0)
    start = tl.where(held, tl.load(cu_seqlens + history).to(tl.int64), 0)
    end = tl.where(held, tl.load(cu_seqlens + history + 1).to(tl.int64), 0)
    low, width = tl.load(lows + history), tl.load(counts + history)
    place = tl.arange(0, PLACES)
    inside = place < count
    shares = tl.load(drawn + 1 + place, mask=inside, other=0.0).to(tl.float64)
    index = low + ((shares + place) / count * width).to(tl.int64)
    sample = tl.load(rows + tl.where(held, index, 0), mask=inside, other=0)
    sample = tl.where(held, sample, 0)
    target = run * count + place
    tl.store(samples + target, sample, mask=inside)
    tl.store(owns + target, (sample - start) // S, mask=inside)
    tl.store(numbers + target, (end - start) // S + place * 0, mask=inside)
    tl.store(starts + run, start)
    tl.store(firsts + run, tl.load(first_blocks + history))
