# type: ignore -- the bodies are Triton, which Python's types do not describe
"""The events that teach the selector, drawn where the lengths are known: on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blossomrec.kernels.geometry import entries_below


@triton.jit(do_not_specialize=["events", "candidates", "histories", "count"])
def draw_kernel(
    drawn,
    rows,
    cu_seqlens,
    first_blocks,
    lessons,
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
    lesson = tl.load(rows + low + (shares * (high - low)).to(tl.int64), mask=place < count)
    target = run * count + place
    tl.store(lessons + target, lesson, mask=place < count)
    tl.store(owns + target, (lesson - start) // S, mask=place < count)
    tl.store(numbers + target, (end - start) // S + place * 0, mask=place < count)
    tl.store(starts + run, start)
    tl.store(firsts + run, tl.load(first_blocks + history))


class Lessons(NamedTuple):
    """Lessons in runs of one history each, int64.

    rows: packed rows, [X, C]; owns: number of the block that each stands in; numbers: complete
    blocks of its history; starts: first packed row of each run's history, [X]; firsts: row of its
    first block key.
    """

    rows: Tensor
    owns: Tensor
    numbers: Tensor
    starts: Tensor
    firsts: Tensor


def draw_lessons(
    rows: Tensor,
    cu_seqlens: Tensor,
    first_blocks: Tensor,
    events: int,
    block_size: int,
    runs: int,
    count: int,
) -> Lessons:
    """``runs`` times ``count`` lessons.

    Args:
        rows: int64 [N], rising: rows that lessons are drawn from; ``events`` and more are none.
        cu_seqlens: int32 [B+1].
        first_blocks: int64 [B+1], row of each history's first block key.
        events: T.
        block_size: events in a block.
    """
    # Of 32 bits, they cannot be rounded up to the next stratum.
    drawn = torch.rand(runs, count + 1, device=rows.device)
    of_lessons, of_runs = rows.new_empty(3, runs, count), rows.new_empty(2, runs)
    lessons = Lessons(*of_lessons.unbind(), *of_runs.unbind())
    draw_kernel[(runs,)](
        drawn,
        rows,
        cu_seqlens,
        first_blocks,
        *lessons,
        events,
        len(rows),
        len(cu_seqlens) - 1,
        count,
        S=block_size,
        PLACES=triton.next_power_of_2(count),
        STEPS=max(len(rows), len(cu_seqlens)).bit_length(),
        num_warps=1,
    )
    return lessons
