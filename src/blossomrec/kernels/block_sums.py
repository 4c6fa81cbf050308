# type: ignore -- the bodies are Triton, which Python's types do not describe
"""How much attention a query has for each block of a history, without its scores in memory."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of queries and blocks of keys that make a tile of scores.
QUERIES, BLOCKS = 64, 8


@triton.jit(do_not_specialize=["events", "count", "blocks"])
def block_sums_kernel(
    q,
    k,
    rows,
    starts,
    sums,
    events,
    count,
    blocks,
    scale,
    q_event,
    q_head,
    k_event,
    k_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    D_BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program takes a run's tile of blocks, for one key/value head, and all queries."""
    run, group = tl.program_id(0), tl.program_id(2)
    column = tl.arange(0, D_BLOCK)[None]
    first = tl.program_id(1) * BLOCKS
    key = tl.load(starts + run) + first * S + tl.arange(0, BLOCKS * S)[:, None]
    keys = tl.load(
        k + key * k_event + group * k_head + column,
        mask=(key < events) & (column < D),
        other=0.0,
    )
    block = first + tl.arange(0, BLOCKS)[None]
    for step in range(tl.cdiv(count * R, QUERIES)):
        query = step * QUERIES + tl.arange(0, QUERIES)
        inside = query < count * R
        lesson = run * count + query // R
        row = tl.load(rows + lesson, mask=inside, other=0)
        head = group * R + query % R
        address = q + (row * q_event + head * q_head)[:, None] + column
        queries = tl.load(address, mask=inside[:, None] & (column < D), other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.reshape(scores, [QUERIES, BLOCKS, S])
        top = tl.max(scores, 2)
        total = top + tl.log(tl.sum(tl.exp(scores - top[:, :, None]), 2))
        place = (lesson.to(tl.int64) * (G * R) + head)[:, None] * blocks + block
        tl.store(sums + place, total, mask=inside[:, None] & (block < blocks))


def block_sums(
    q: Tensor, k: Tensor, rows: Tensor, starts: Tensor, blocks: int, block_size: int
) -> Tensor:
    """Logarithm of the summed exponentials of the scaled scores with a block's keys.

    Args:
        q: [T, H, d].
        k: [T, G, d].
        rows: int64 [X, C], packed rows of the queries of X runs.
        starts: int64 [X], packed row from which each run's blocks follow each other.
        blocks: of each run, J; keys beyond the last row count as zero.
        block_size: keys in a block, a power of two.

    Returns:
        float32 [X, C, G, H / G, J], without a gradient.
    """
    runs, count = rows.shape
    events, groups, size = k.shape
    per_group = q.shape[1] // groups
    sums = q.new_empty(runs, count, groups, per_group, blocks, dtype=torch.float32)
    block_sums_kernel[(runs, triton.cdiv(blocks, BLOCKS), groups)](
        q,
        k,
        rows,
        starts,
        sums,
        events,
        count,
        blocks,
        1 / math.sqrt(size),
        *q.stride()[:2],
        *k.stride()[:2],
        G=groups,
        R=per_group,
        D=size,
        S=block_size,
        D_BLOCK=max(16, triton.next_power_of_2(size)),
        QUERIES=QUERIES,
        BLOCKS=BLOCKS,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
    )
    return sums
