"""Short histories as dense attention with masks: of both paths, or of their union.

Quadratic, but only in lengths up to a bound. Histories of similar length are padded and attended
together. The masks are additive, as the kernels behind ``scaled_dot_product_attention`` want them,
and shared by the heads of a group, but for that of a union, which holds the bias of each head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from blossomrec.attention.buckets import Buckets
from blossomrec.attention.spec import BlossomSpec, Inputs

# Not cuDNN: it plans anew for every shape, and the sizes of buckets change with every batch.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def dense_attention(
    inputs: Inputs, selected: Tensor, buckets: Buckets, spec: BlossomSpec, *, selects_all: bool
) -> Tensor:
    """Output [T, H, d], both paths fused.

    ``selects_all``: every earlier block is selected, so that the long-term path is causal
    attention and needs no mask.
    """
    outputs = []
    padded = (buckets.pad(x) for x in (inputs.q, inputs.k, inputs.v, inputs.gates, selected))
    for q, k, v, gates, selected, lengths in zip(*padded, buckets.lengths, strict=True):
        heads, shape = _fold(q, k, v), q.shape
        inside = torch.arange(shape[1], device=q.device) < lengths[:, None]
        near = _short_mask(lengths, inside, spec)
        if spec.is_union:
            bias = gates.transpose(1, 2).reshape(*heads[0].shape[:3], 1)
            mask = _union_mask(near, _long_mask(selected, inside, spec), bias)
            outputs.append(_unfold(_attend(*heads, mask), shape))
        else:
            far = None if selects_all else _long_mask(selected, inside, spec)
            long, short = (_unfold(_attend(*heads, mask), shape) for mask in (far, near))
            outputs.append(gates[..., :1] * long + gates[..., 1:] * short)
    return buckets.unpad(outputs)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[n * G, R, L, d], the mask [n * G, n or 1, R or 1, L, L] or None for a causal one."""
    if mask is not None:
        mask = _by_group(mask, len(q)).to(q.dtype)
    with sdpa_kernel(BACKENDS):
        return scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)


def _by_group(mask: Tensor, count: int) -> Tensor:
    """Masks of ``count`` histories and groups, [n * G, ...], of those of n histories, or of one."""
    if 1 < len(mask) < count:
        return mask.repeat_interleave(count // len(mask), dim=0)
    return mask


def _union_mask(near: Tensor, far: Tensor, bias: Tensor) -> Tensor:
    """Additive mask [n * G, R, L, L]: the bias where the pattern sees a key, else as of ``far``.

    near: [1 or n, 1, L, L]; far: [n * G, 1, L, L]; bias: [n * G, R, L, 1].
    """
    return torch.where(_by_group(near, len(far)) == 0, bias, far.to(bias.dtype))


def _fold(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, L, H or G, d] to [n * G, R, L, d]: a group's heads share a mask without a copy of it."""
    count, length, groups, size = k.shape
    q = q.view(count, length, groups, -1, size).permute(0, 2, 3, 1, 4).flatten(0, 1)
    k, v = (x.transpose(1, 2).reshape(-1, 1, length, size).expand_as(q) for x in (k, v))
    return q, k, v


def _unfold(out: Tensor, shape: torch.Size) -> Tensor:
    """[n * G, R, L, d] back to ``shape``, [n, L, H, d]."""
    count, length, heads, size = shape
    return out.reshape(count, heads, length, size).transpose(1, 2)


def _long_mask(selected: Tensor, inside: Tensor, spec: BlossomSpec) -> Tensor:
    """Additive mask [n * G, 1, L, L]: 0 in the selected blocks and the own one, -inf elsewhere.

    selected: int32 [n, L, G, top_n]; inside: bool [n, L], which padded rows are events.
    """
    count, length, groups, _ = selected.shape
    block_size = spec.block_size
    blocks = -(-length // block_size)
    # One place more for "none".
    by_block = torch.full((count, groups, length, blocks + 1), -math.inf, device=selected.device)
    places = torch.where(selected < 0, blocks, selected).transpose(1, 2).long()
    by_block.scatter_(-1, places, 0.0)
    by_key = by_block[..., :blocks].repeat_interleave(block_size, dim=-1)[..., :length]
    event = torch.arange(length, device=selected.device)
    own = event[:, None] // block_size == event // block_size
    if spec.causal:
        own = (own & (event <= event[:, None]))[None]
    else:
        # A padded row sees itself, so that no row is empty.
        own = own & (inside[:, None] | (event[:, None] == event))
    return by_key.masked_fill(own[:, None], 0.0).flatten(0, 1)[:, None]


def _short_mask(lengths: Tensor, inside: Tensor, spec: BlossomSpec) -> Tensor:
    """Additive mask [1 or n, 1, L, L] of the power-law pattern and the sinks."""
    event, sinks = torch.arange(inside.shape[1], device=inside.device), spec.sinks
    distance = event[:, None] - event
    seen = spec.pattern.is_visible(distance.abs())
    if spec.causal:
        seen = ((seen | (event < sinks)) & (distance >= 0))[None]
    else:
        last = (event >= lengths[:, None] - sinks) & inside
        seen = (seen | last[:, None]) & (inside[:, None] | (distance == 0))
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)[:, None]
