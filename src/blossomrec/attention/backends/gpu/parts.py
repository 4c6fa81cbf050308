"""What a layer does around the operation on a GPU: few passes over memory, few launches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from blossomrec.attention import selector
from blossomrec.attention.backends.gpu import block_mass, importance, step
from blossomrec.attention.backends.gpu.compression import pooled_windows
from blossomrec.attention.backends.gpu.geometry import block_starts, cos_sin, first_blocks
from blossomrec.attention.backends.gpu.launch import unsupported
from blossomrec.attention.backends.gpu.projection import Sizes, project
from blossomrec.attention.backends.gpu.sampling import draw_samples
from blossomrec.attention.backends.gpu.windows import key_windows
from blossomrec.attention.backends.parts import Parts
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.rotary import rotated_pairs
from blossomrec.attention.selector import Sample
from blossomrec.attention.spec import BlossomSpec, Heads, Target
from blossomrec.attention.state import eager


class GpuParts(Parts):
    """Kernels written in Triton; where one does not take a size, plain PyTorch."""

    def project(self, x, weights, cu_seqlens, heads, spec, rotary=None):
        angles = rotary
        if angles is None:
            pairs = rotated_pairs(heads.size, spec.rotary_share)
            angles = cos_sin(cu_seqlens, len(x), pairs)
        *matrices, gate, bias = weights
        if gate is not None:
            matrices.append(gate)
        return project(
            x,
            tuple(matrices),
            bias,
            angles,
            Sizes(heads.queries, heads.keys, heads.size, angles.shape[2]),
        )

    def block_keys(
        self, compression: MeanCompression | MLPCompression, k: Tensor, cu_seqlens: Tensor
    ) -> Tensor:
        size = compression.block_size
        where = block_starts(cu_seqlens, len(k), size)
        if isinstance(compression, MeanCompression):
            return key_windows(k, *where, size, size).unflatten(2, (size, -1)).mean(2)
        parameters = compression.places, compression.inner, compression.outer
        return pooled_windows(k, *parameters, where, size)

    def selector_loss(
        self, q: Tensor, k: Tensor, block_keys: Tensor, cu_seqlens: Tensor, **given: Any
    ) -> Tensor:
        rows, max_length, spec = given["rows"], given["max_length"], given["spec"]
        blocks, size = max_length // spec.block_size, spec.block_size
        if selector.no_choice(blocks, rows, block_keys, spec) or size & (size - 1):
            return super().selector_loss(q, k, block_keys, cu_seqlens, **given)
        if blocks > block_mass.MAX_BLOCKS:
            loss = partial(selector.selector_loss, shares=block_shares)
            return loss(q, k, block_keys, cu_seqlens, **given)
        sizes = selector.sample_sizes(max_length, q.shape[1])
        before = first_blocks(cu_seqlens, size)
        samples = draw_samples(rows, cu_seqlens, before, spec, *sizes)
        form = (size, spec.causal)
        return importance.distillation_loss(q, k, block_keys, samples, blocks, form)

    def captures_steps(self, target: Target) -> bool:
        return target.device == "cuda" and takes_steps(target)

    def extend(self, q, k, v, gates, layer, step_, compression, spec, rotary=None):
        heads = Heads(q.shape[1], k.shape[1], q.shape[2])
        target = Target(spec, heads, q.dtype, q.device.type)
        if not takes_steps(target):
            return super().extend(q, k, v, gates, layer, step_, compression, spec, rotary)
        # A block that several events fill is not there for the program of the last one.
        alone = len(step_.bounds) == len(step_.users) + 1
        mean = alone and isinstance(compression, MeanCompression)
        with torch.autocast(q.device.type, enabled=False):
            q, k = eager.rotated(q, k, step_, spec.rotary_share, rotary)
            step.append(k, v, layer, step_, mean=mean)
            if not mean:
                eager.close_blocks(layer, step_, compression)
            return step.attend(q, gates, layer, step_, spec)


def takes_steps(target: Target) -> bool:
    """Whether new events are attended by kernels, which take all the blocks that they select."""
    return not unsupported(target) and target.spec.share == 1


def block_shares(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, sample: Sample, spec: BlossomSpec
) -> Tensor:
    """See :func:`blossomrec.attention.selector.block_shares`; scores are never in memory."""
    eligible = sample.eligible
    form = (eligible.shape[-1], spec.block_size)
    sums = block_mass.block_sums(q, k, sample.rows, sample.starts, *form)
    return sums.masked_fill(~eligible[:, :, :, None], -torch.inf).softmax(-1).mean(3)
