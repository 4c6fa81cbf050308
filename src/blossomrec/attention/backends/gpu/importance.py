# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Distillation of the selector, from importance to the gradients, in a few launches.

An event may be sampled twice, and runs may be of the same history: their gradients are added by
the first of them, in order, so that sums are the same each time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.block_mass import block_sums, divergence
from blossomrec.attention.backends.gpu.kernels.importance import (
    importance_kernel,
    key_gradients_kernel,
    mean_gradients_kernel,
    scatter_kernel,
)
from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.attention.backends.gpu.sampling import SampledEvents

# Block keys that a program takes at a time, and samples where they are what is cut.
BLOCKS, SAMPLES = 64, 16


def distillation_loss(
    q: Tensor,
    k: Tensor,
    block_keys: Tensor,
    samples: SampledEvents,
    blocks: int,
    form: tuple[int, bool],
) -> Tensor:
    """Divergence of the softmax over importance from the shares of attention.

    Args:
        q: [T, H, d].
        k: [T, G, d]; no gradient.
        block_keys: [N, G, d].
        blocks: of the longest history.
        form: events in a block, and whether only earlier blocks are eligible.

    Returns:
        Scalar float32, mean over samples with two eligible blocks or more, and heads.
    """
    return _DistillationLoss.apply(q, k.detach(), block_keys.contiguous(), samples, blocks, form)


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, block_keys, samples, blocks, form):
        runs, count = samples.rows.shape
        groups, size = k.shape[1:]
        ctx.sizes = {"G": groups, "R": q.shape[1] // groups, "D": size}
        ctx.sizes["D_BLOCK"] = max(16, next_power_of_2(size))
        ctx.scale, ctx.shape = 1 / math.sqrt(size), q.shape
        ctx.places = max(16, next_power_of_2(count))
        means = q.new_empty(runs, count, groups, size, dtype=torch.float32)
        importance = q.new_empty(runs, count, groups, blocks, dtype=torch.float32)
        importance_kernel[(runs, cdiv(blocks, BLOCKS), groups)](
            q,
            block_keys,
            samples.rows,
            samples.firsts,
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
        sums = block_sums(q, k, samples.rows, samples.starts, blocks, block_size)
        result, slopes = divergence(importance, sums, samples.owns, samples.numbers, causal)
        ctx.save_for_backward(block_keys, means, slopes, result, *samples)
        ctx.dtype = q.dtype
        return result[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        block_keys, means, slopes, result, *samples = ctx.saved_tensors
        samples, sizes = SampledEvents(*samples), ctx.sizes
        (runs, count), blocks = samples.rows.shape, slopes.shape[-1]
        key_sizes = {name: sizes[name] for name in ("G", "D", "D_BLOCK")}
        grad_means, grad = torch.empty_like(means), grad.contiguous()
        mean_gradients_kernel[(runs, cdiv(count, SAMPLES), sizes["G"])](
            slopes,
            block_keys,
            samples.firsts,
            grad,
            result,
            grad_means,
            count,
            blocks,
            len(block_keys),
            ctx.scale,
            **sizes,
            SAMPLES=SAMPLES,
            BLOCKS=BLOCKS,
        )
        grad_q = means.new_zeros(ctx.shape, dtype=ctx.dtype)
        scatter_kernel[(runs * count,)](
            grad_means,
            samples.rows,
            grad_q,
            runs * count,
            **sizes,
            H_BLOCK=next_power_of_2(ctx.shape[1]),
            PLACES=next_power_of_2(runs * count),
        )
        grad_keys = torch.zeros_like(block_keys)
        key_gradients_kernel[(runs, cdiv(blocks, BLOCKS), sizes["G"])](
            slopes,
            means,
            samples.numbers,
            samples.starts,
            samples.firsts,
            grad,
            result,
            grad_keys,
            runs,
            count,
            blocks,
            ctx.scale,
            **key_sizes,
            RUNS=next_power_of_2(runs),
            PLACES=ctx.places,
            BLOCKS=BLOCKS,
        )
        return grad_q, None, grad_keys, None, None, None
