# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Attention by block without its scores in memory, and the divergence from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.kernels.block_mass import (
    block_sums_kernel,
    divergence_kernel,
    mean_kernel,
)
from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2

# Rows of queries and blocks of keys that make a tile of scores.
QUERIES, BLOCKS = 64, 8
# Blocks of a history that a program of the divergence holds at once.
MAX_BLOCKS = 8_192


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
    block_sums_kernel[(runs, cdiv(blocks, BLOCKS), groups)](
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
        D_BLOCK=max(16, next_power_of_2(size)),
        QUERIES=QUERIES,
        BLOCKS=BLOCKS,
    )
    return sums


def divergence(
    importance: Tensor, sums: Tensor, owns: Tensor, numbers: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of the softmax over importance from the shares of attention.

    Args:
        importance: float32 [X, C, G, J], J at most ``MAX_BLOCKS``.
        sums: float32 [X, C, G, R, J], see :func:`block_sums`; shares are made of it.
        owns: int64 [X, C], number of the block that each sample stands in.
        numbers: int64 [X, C], complete blocks of its history.
        causal: whether only blocks before the own one are eligible, or all others.

    Returns:
        float32 [2]: the mean over samples with two eligible blocks or more, and heads, zero without
        any; and one over their number. And slopes, float32 [X, C, G, J], which times that are the
        gradient of the mean for the importance.
    """
    runs, count, groups, per_group, blocks = sums.shape
    samples = runs * count
    losses, counted = importance.new_empty(2, samples, groups).unbind()
    result, slopes = importance.new_empty(2), torch.empty_like(importance)
    places = next_power_of_2(blocks)
    divergence_kernel[(samples, groups)](
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
    places = next_power_of_2(samples * groups)
    mean_kernel[(1,)](losses, counted, result, samples * groups, PLACES=places)
    return result, slopes
