# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Attention by block without its scores in memory, and the divergence from it."""

from __future__ import annotations

import triton
import triton.language as tl


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
        sample = run * count + query // R
        row = tl.load(rows + sample, mask=inside, other=0)
        head = group * R + query % R
        address = q + (row * q_event + head * q_head)[:, None] + column
        queries = tl.load(address, mask=inside[:, None] & (column < D), other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3") * scale
        scores = tl.reshape(scores, [QUERIES, BLOCKS, S])
        top = tl.max(scores, 2)
        total = top + tl.log(tl.sum(tl.exp(scores - top[:, :, None]), 2))
        place = (sample.to(tl.int64) * (G * R) + head)[:, None] * blocks + block
        tl.store(sums + place, total, mask=inside[:, None] & (block < blocks))


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
    """One program takes one sample and key/value head."""
    sample, group = tl.program_id(0), tl.program_id(1)
    block = tl.arange(0, PLACES)
    own = tl.load(owns + sample)
    if CAUSAL:
        eligible = (block < blocks) & (block < own)
    else:
        eligible = (block < blocks) & (block < tl.load(numbers + sample)) & (block != own)
    choice = (tl.sum(eligible.to(tl.int32), 0) >= 2).to(tl.float32)
    place = (sample.to(tl.int64) * G + group) * blocks
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
    tl.store(losses + sample * G + group, choice * tl.sum(part, 0))
    tl.store(counted + sample * G + group, choice)
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
