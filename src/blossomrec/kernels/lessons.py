# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Lessons of the selector: attention by block without its scores in memory, and the divergence."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of queries and blocks of keys that make a tile of scores.
QUERIES, BLOCKS = 64, 8
# Blocks of a history that a program of the divergence holds at once.
MOST_BLOCKS = 8_192


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
        scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3") * scale
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
    )
    return sums


@triton.jit(do_not_specialize=["blocks"])
def divergence_kernel(
    importance,
    sums,
    owns,
    numbers,
    losses,
    slopes,
    counted,
    blocks,
    G: tl.constexpr,
    R: tl.constexpr,
    CAUSAL: tl.constexpr,
    PLACES: tl.constexpr,
):
    """One program takes one lesson and key/value head."""
    lesson, group = tl.program_id(0), tl.program_id(1)
    block = tl.arange(0, PLACES)
    own = tl.load(owns + lesson)
    if CAUSAL:
        eligible = (block < blocks) & (block < own)
    else:
        eligible = (block < blocks) & (block < tl.load(numbers + lesson)) & (block != own)
    choice = (tl.sum(eligible.to(tl.int32), 0) >= 2).to(tl.float32)
    place = (lesson.to(tl.int64) * G + group) * blocks
    mass = tl.zeros([PLACES], tl.float32)
    for head in tl.static_range(R):
        value = tl.load(sums + place * R + head * blocks + block, mask=eligible, other=-1.0e30)
        value = tl.where(eligible, tl.exp(value - tl.max(value, 0)), 0.0)
        mass += value / tl.maximum(tl.sum(value, 0), 1.0e-30) / R
    value = tl.load(importance + place + block, mask=eligible, other=-1.0e30)
    value -= tl.max(value, 0)
    share = tl.where(eligible, tl.exp(value), 0.0)
    total = tl.maximum(tl.sum(share, 0), 1.0e-30)
    value -= tl.log(total)
    # Where a mass is too small for a number, so is its part.
    part = tl.where(mass > 0.0, mass * (tl.log(tl.maximum(mass, 1.0e-37)) - value), 0.0)
    tl.store(losses + lesson * G + group, choice * tl.sum(part, 0))
    tl.store(counted + lesson * G + group, choice)
    tl.store(slopes + place + block, choice * (share / total - mass), mask=block < blocks)


@triton.jit(do_not_specialize=["count"])
def mean_kernel(losses, counted, result, count, PLACES: tl.constexpr):
    """Sum of the losses over the number of those that count, and one over that number."""
    place = tl.arange(0, PLACES)
    total = tl.sum(tl.load(counted + place, mask=place < count, other=0.0), 0)
    total = tl.maximum(total, 1.0)
    loss = tl.sum(tl.load(losses + place, mask=place < count, other=0.0), 0)
    tl.store(result, loss / total)
    tl.store(result + 1, 1.0 / total)


def divergence(
    importance: Tensor, sums: Tensor, owns: Tensor, numbers: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of the softmax over importance from the shares of attention.

    Args:
        importance: float32 [X, C, G, J], J at most ``MOST_BLOCKS``.
        sums: float32 [X, C, G, R, J], see :func:`block_sums`; shares are made of it.
        owns: int64 [X, C], number of the block that each lesson stands in.
        numbers: int64 [X, C], complete blocks of its history.
        causal: whether only blocks before the own one are eligible, or all others.

    Returns:
        float32 [2]: the mean over lessons with two eligible blocks or more, and heads, zero without
        any; and one over their number. And slopes, float32 [X, C, G, J], which times that are the
        gradient of the mean for the importance.
    """
    runs, count, groups, per_group, blocks = sums.shape
    lessons = runs * count
    losses, counted = importance.new_empty(2, lessons, groups).unbind()
    result, slopes = importance.new_empty(2), torch.empty_like(importance)
    places = triton.next_power_of_2(blocks)
    divergence_kernel[(lessons, groups)](
        importance,
        sums,
        owns,
        numbers,
        losses,
        slopes,
        counted,
        blocks,
        G=groups,
        R=per_group,
        CAUSAL=causal,
        PLACES=places,
        num_warps=max(1, min(16, places // 256)),
    )
    places = triton.next_power_of_2(lessons * groups)
    mean_kernel[(1,)](losses, counted, result, lessons * groups, PLACES=places)
    return result, slopes
