# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Drawing the events of the distillation where the lengths are known."""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.gpu.kernels.geometry import entries_below


@triton.jit(do_not_specialize=["events", "candidates", "histories", "count"])
def draw_kernel(
    drawn,
    rows,
    cu_seqlens,
    first_blocks,
    samples,
    owns,
    numbers,
    starts,
    firsts,
    events,
    candidates,
    histories,
    count,
    S: tl.constexpr,
    PLACES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One program draws one run: a row, then ``count`` of the rows of its history.

    Draws are stratified: the i-th of n is from the i-th of n equal parts.
    """
    run = tl.program_id(0)
    usable = entries_below(rows, candidates, tl.zeros([], tl.int64) + events, STEPS)
    drawn += run * (count + 1)
    share = (tl.load(drawn).to(tl.float64) + run) / tl.num_programs(0)
    row = tl.load(rows + (share * usable).to(tl.int64))
    history = entries_below(cu_seqlens + 1, histories, row + 1, STEPS)
    start = tl.load(cu_seqlens + history).to(tl.int64)
    end = tl.load(cu_seqlens + history + 1).to(tl.int64)
    # Both at once: a search is a chain of loads that wait for each other.
    side = tl.arange(0, 2)
    edges = entries_below(rows, candidates, tl.where(side == 0, start, end), STEPS)
    low, high = tl.min(edges, 0), tl.max(edges, 0)
    place = tl.arange(0, PLACES)
    shares = tl.load(drawn + 1 + place, mask=place < count, other=0.0).to(tl.float64)
    shares = (shares + place) / count
    sample = tl.load(rows + low + (shares * (high - low)).to(tl.int64), mask=place < count)
    target = run * count + place
    tl.store(samples + target, sample, mask=place < count)
    tl.store(owns + target, (sample - start) // S, mask=place < count)
    tl.store(numbers + target, (end - start) // S + place * 0, mask=place < count)
    tl.store(starts + run, start)
    tl.store(firsts + run, tl.load(first_blocks + history))
