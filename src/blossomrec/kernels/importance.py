# type: ignore -- the bodies are Triton, which Python's types do not describe
"""What teaches the selector, from importance to the gradients, in a few launches.

Lessons may be the same event, and runs may be of the same history: their gradients are added by the
first of them, in order, so that sums are the same each time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.kernels.drawing import Lessons
from blossomrec.kernels.lessons import block_sums, divergence

# Block keys that a program takes at a time, and lessons where they are what is cut.
BLOCKS, LESSONS = 64, 16


@triton.jit(do_not_specialize=["count", "blocks", "all_blocks"])
def importance_kernel(
    q,
    block_keys,
    lessons,
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
    lesson = run * count + place
    row = tl.load(lessons + lesson, mask=place < count, other=0)
    mean = tl.zeros([PLACES, D_BLOCK], tl.float32)
    for head in tl.static_range(R):
        address = q + row * q_event + (group * R + head) * q_head + column
        mean += tl.load(address, mask=held, other=0.0).to(tl.float32)
    mean /= R
    if tl.program_id(1) == 0:
        tl.store(means + (lesson * G + group) * D + column, mean, mask=held)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    number = tl.load(firsts + run) + block
    known = (number < all_blocks)[:, None] & (column < D)
    address = block_keys + (number * G + group)[:, None] * D + column
    keys = tl.load(address, mask=known, other=0.0).to(tl.float32)
    scores = tl.dot(mean, tl.trans(keys), input_precision="tf32x3") * scale
    target = (lesson.to(tl.int64) * G + group) * blocks + block[None]
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
    LESSONS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Gradient of each query of a group, float32 [X, C, G, D]: alike for all its heads."""
    run, group = tl.program_id(0), tl.program_id(2)
    place = tl.program_id(1) * LESSONS + tl.arange(0, LESSONS)[:, None]
    column = tl.arange(0, D_BLOCK)[None]
    lesson = run * count + place
    first = tl.load(firsts + run)
    total = tl.zeros([LESSONS, D_BLOCK], tl.float32)
    for step in range(tl.cdiv(blocks, BLOCKS)):
        block = step * BLOCKS + tl.arange(0, BLOCKS)
        inside = (place < count) & (block < blocks)[None]
        source = (lesson.to(tl.int64) * G + group) * blocks + block[None]
        slope = tl.load(slopes + source, mask=inside, other=0.0)
        known = (first + block < all_blocks)[:, None] & (column < D)
        address = block_keys + ((first + block) * G + group)[:, None] * D + column
        keys = tl.load(address, mask=known, other=0.0).to(tl.float32)
        total = tl.dot(slope, keys, total, input_precision="tf32x3")
    total *= tl.load(grad) * tl.load(result + 1) * scale / R
    held = (place < count) & (column < D)
    tl.store(grad_means + (lesson * G + group) * D + column, total, mask=held)


@triton.jit(do_not_specialize=["lessons_in_all"])
def scatter_kernel(
    grad_means,
    lessons,
    grad_q,
    lessons_in_all,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    H_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    """One program takes one lesson; the first of those with the same event writes their sum."""
    mine = tl.program_id(0)
    row = tl.load(lessons + mine)
    other = tl.arange(0, PLACES)
    rows = tl.load(lessons + other, mask=other < lessons_in_all, other=-1)
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
            lesson = other * count + place
            source = (lesson.to(tl.int64) * G + group) * blocks + block[None]
            slope = tl.load(slopes + source, mask=inside, other=0.0)
            mean = tl.load(means + (lesson * G + group) * D + column, mask=held, other=0.0)
            total = tl.dot(tl.trans(slope), mean, total, input_precision="tf32x3")
    total *= tl.load(grad) * tl.load(result + 1) * scale
    # Blocks beyond belong to other histories, whose own runs write there.
    mine = (block < tl.load(numbers + run * count))[:, None] & (column < D)
    target = grad_keys + ((first + block) * G + group)[:, None] * D + column
    tl.store(target, total.to(grad_keys.dtype.element_ty), mask=mine)


def lessons_loss(
    q: Tensor, k: Tensor, block_keys: Tensor, lessons: Lessons, blocks: int, form: tuple[int, bool]
) -> Tensor:
    """Divergence of the softmax over importance from the shares of attention.

    Args:
        q: [T, H, d].
        k: [T, G, d]; no gradient.
        block_keys: [N, G, d].
        blocks: of the longest history.
        form: events in a block, and whether only earlier blocks are eligible.

    Returns:
        Scalar float32, mean over lessons with two eligible blocks or more, and heads.
    """
    return _LessonsLoss.apply(q, k.detach(), block_keys.contiguous(), lessons, blocks, form)


class _LessonsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, block_keys, lessons, blocks, form):
        runs, count = lessons.rows.shape
        groups, size = k.shape[1:]
        ctx.sizes = {"G": groups, "R": q.shape[1] // groups, "D": size}
        ctx.sizes["D_BLOCK"] = max(16, triton.next_power_of_2(size))
        ctx.scale, ctx.shape, ctx.places = 1 / math.sqrt(size), q.shape, max(16, _power(count))
        means = q.new_empty(runs, count, groups, size, dtype=torch.float32)
        importance = q.new_empty(runs, count, groups, blocks, dtype=torch.float32)
        importance_kernel[(runs, triton.cdiv(blocks, BLOCKS), groups)](
            q,
            block_keys,
            lessons.rows,
            lessons.firsts,
            means,
            importance,
            count,
            blocks,
            len(block_keys),
            ctx.scale,
            *q.stride()[:2],
            **ctx.sizes,
            PLACES=ctx.places,
            BLOCKS=BLOCKS,
        )
        block_size, causal = form
        sums = block_sums(q, k, lessons.rows, lessons.starts, blocks, block_size)
        result, slopes = divergence(importance, sums, lessons.owns, lessons.numbers, causal)
        ctx.save_for_backward(block_keys, means, slopes, result, *lessons)
        ctx.dtype = q.dtype
        return result[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        block_keys, means, slopes, result, *lessons = ctx.saved_tensors
        lessons, sizes = Lessons(*lessons), ctx.sizes
        (runs, count), blocks = lessons.rows.shape, slopes.shape[-1]
        key_sizes = {name: sizes[name] for name in ("G", "D", "D_BLOCK")}
        grad_means, grad = torch.empty_like(means), grad.contiguous()
        mean_gradients_kernel[(runs, triton.cdiv(count, LESSONS), sizes["G"])](
            slopes,
            block_keys,
            lessons.firsts,
            grad,
            result,
            grad_means,
            count,
            blocks,
            len(block_keys),
            ctx.scale,
            **sizes,
            LESSONS=LESSONS,
            BLOCKS=BLOCKS,
        )
        grad_q = means.new_zeros(ctx.shape, dtype=ctx.dtype)
        scatter_kernel[(runs * count,)](
            grad_means,
            lessons.rows,
            grad_q,
            runs * count,
            **sizes,
            H_BLOCK=_power(ctx.shape[1]),
            PLACES=_power(runs * count),
        )
        grad_keys = torch.zeros_like(block_keys)
        key_gradients_kernel[(runs, triton.cdiv(blocks, BLOCKS), sizes["G"])](
            slopes,
            means,
            lessons.numbers,
            lessons.starts,
            lessons.firsts,
            grad,
            result,
            grad_keys,
            runs,
            count,
            blocks,
            ctx.scale,
            **key_sizes,
            RUNS=_power(runs),
            PLACES=ctx.places,
            BLOCKS=BLOCKS,
        )
        return grad_q, None, grad_keys, None, None, None


def _power(number: int) -> int:
    return triton.next_power_of_2(number)
