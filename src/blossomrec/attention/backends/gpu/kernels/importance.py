# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Importance of blocks for sampled events, and its gradients."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "blocks", "all_blocks"])
def importance_kernel(
    q,
    block_keys,
    samples,
    firsts,
    means,
    importance,
    count,
    blocks,
    all_blocks,
    scale,
    q_event,
    q_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program takes a run's tile of blocks for one key/value head; the first keeps the means.

    means: float32 [X, C, G, D], of the queries of a group; importance: float32 [X, C, G, J].
    """
    run, group = tl.program_id(0), tl.program_id(2)
    place, column = tl.arange(0, PLACES)[:, None], tl.arange(0, D_BLOCK)[None]
    held = (place < count) & (column < D)
    sample = run * count + place
    row = tl.load(samples + sample, mask=place < count, other=0)
    mean = tl.zeros([PLACES, D_BLOCK], tl.float32)
    for head in tl.static_range(R):
        address = q + row * q_event + (group * R + head) * q_head + column
        mean += tl.load(address, mask=held, other=0.0).to(tl.float32)
    mean /= R
    if tl.program_id(1) == 0:
        tl.store(means + (sample * G + group) * D + column, mean, mask=held)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    number = tl.load(firsts + run) + block
    known = (number < all_blocks)[:, None] & (column < D)
    address = block_keys + (number * G + group)[:, None] * D + column
    keys = tl.load(address, mask=known, other=0.0).to(tl.float32)
    scores = tl.dot(mean, tl.trans(keys), input_precision="tf32x3") * scale
    target = (sample.to(tl.int64) * G + group) * blocks + block[None]
    tl.store(importance + target, scores, mask=(place < count) & (block < blocks)[None])


@triton.jit(do_not_specialize=["count", "blocks", "all_blocks"])
def mean_gradients_kernel(
    slopes,
    block_keys,
    firsts,
    grad,
    result,
    grad_means,
    count,
    blocks,
    all_blocks,
    scale,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Gradient of each query of a group, float32 [X, C, G, D]: alike for all its heads."""
    run, group = tl.program_id(0), tl.program_id(2)
    place = tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES)[:, None]
    column = tl.arange(0, D_BLOCK)[None]
    sample = run * count + place
    first = tl.load(firsts + run)
    total = tl.zeros([SAMPLES, D_BLOCK], tl.float32)
    for step in range(tl.cdiv(blocks, BLOCKS)):
        block = step * BLOCKS + tl.arange(0, BLOCKS)
        inside = (place < count) & (block < blocks)[None]
        source = (sample.to(tl.int64) * G + group) * blocks + block[None]
        slope = tl.load(slopes + source, mask=inside, other=0.0)
        known = (first + block < all_blocks)[:, None] & (column < D)
        address = block_keys + ((first + block) * G + group)[:, None] * D + column
        keys = tl.load(address, mask=known, other=0.0).to(tl.float32)
        total = tl.dot(slope, keys, total, input_precision="tf32x3")
    total *= tl.load(grad) * tl.load(result + 1) * scale / R
    held = (place < count) & (column < D)
    tl.store(grad_means + (sample * G + group) * D + column, total, mask=held)


@triton.jit(do_not_specialize=["sample_count"])
def scatter_kernel(
    grad_means,
    samples,
    grad_q,
    sample_count,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    H_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    """One program takes one sample; the first of those with the same event writes their sum."""
    mine = tl.program_id(0)
    row = tl.load(samples + mine)
    other = tl.arange(0, PLACES)
    rows = tl.load(samples + other, mask=other < sample_count, other=-1)
    same = rows == row
    if tl.min(tl.where(same, other, PLACES), 0) < mine:
        return
    head, column = tl.arange(0, H_BLOCK)[:, None], tl.arange(0, D_BLOCK)[None]
    held = (head < G * R) & (column < D)
    source = grad_means + head // R * D + column
    total = tl.zeros([H_BLOCK, D_BLOCK], tl.float32)
    place = mine
    while place < PLACES:
        total += tl.load(source + place * (G * D), mask=held, other=0.0)
        place = tl.min(tl.where(same & (other > place), other, PLACES), 0)
    target = grad_q + row * (G * R * D) + head * D + column
    tl.store(target, total.to(grad_q.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["runs", "count", "blocks"])
def key_gradients_kernel(
    slopes,
    means,
    numbers,
    starts,
    firsts,
    grad,
    result,
    grad_keys,
    runs,
    count,
    blocks,
    scale,
    G: tl.constexpr,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    RUNS: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program takes a tile of blocks of a history, at its first run, and all runs over it."""
    run, group = tl.program_id(0), tl.program_id(2)
    # A history without a complete block has its first block's place in common with the next one.
    start, first = tl.load(starts + run), tl.load(firsts + run)
    earlier = tl.arange(0, RUNS)
    same = tl.load(starts + earlier, mask=earlier < run, other=-1) == start
    if tl.sum(same.to(tl.int32), 0) > 0:
        return
    place, column = tl.arange(0, PLACES)[:, None], tl.arange(0, D_BLOCK)[None]
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    held = (place < count) & (column < D)
    inside = (place < count) & (block < blocks)[None]
    total = tl.zeros([BLOCKS, D_BLOCK], tl.float32)
    for other in range(run, runs):
        if tl.load(starts + other) == start:
            sample = other * count + place
            source = (sample.to(tl.int64) * G + group) * blocks + block[None]
            slope = tl.load(slopes + source, mask=inside, other=0.0)
            mean = tl.load(means + (sample * G + group) * D + column, mask=held, other=0.0)
            total = tl.dot(tl.trans(slope), mean, total, input_precision="tf32x3")
    total *= tl.load(grad) * tl.load(result + 1) * scale
    # Blocks beyond belong to other histories, whose own runs write there.
    mine = (block < tl.load(numbers + run * count))[:, None] & (column < D)
    target = grad_keys + ((first + block) * G + group)[:, None] * D + column
    tl.store(target, total.to(grad_keys.dtype.element_ty), mask=mine)
