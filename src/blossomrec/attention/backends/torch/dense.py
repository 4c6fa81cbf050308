"""Both paths of short histories as dense attention with masks.

Quadratic, but only in lengths up to a bound. Histories of similar length are padded and attended
together. The masks are additive, as the kernels behind ``scaled_dot_product_attention`` want them,
and shared by the heads of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from blossomrec.attention import pattern
from blossomrec.attention.buckets import Buckets
from blossomrec.attention.spec import BlossomSpec

# Not cuDNN: it plans anew for every shape, and the sizes of buckets change with every batch.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def dense_paths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    buckets: Buckets,
    spec: BlossomSpec,
    *,
    selects_all: bool,
) -> tuple[Tensor, Tensor]:
    """Long-term and short-term attention, [T, H, d] each.

    ``selects_all``: every earlier block is selected, so that the long-term path is causal
    attention and needs no mask.
    """
    long, short = [], []
    padded = (buckets.pad(x) for x in (q, k, v, selected))
    for bucket_q, bucket_k, bucket_v, chosen, lengths in zip(*padded, buckets.lengths, strict=True):
        heads = _fold(bucket_q, bucket_k, bucket_v)
        length = bucket_q.shape[1]
        inside = torch.arange(length, device=q.device) < lengths[:, None]
        near = _short_mask(lengths, inside, spec).to(q.dtype)
        far = None
        if not selects_all:
            far = _long_mask(chosen, inside, spec).to(q.dtype)
        shape = bucket_q.shape
        long.append(_unfold(_attend(*heads, far), shape))
        short.append(_unfold(_attend(*heads, near), shape))
    return buckets.unpad(long), buckets.unpad(short)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[n * G, R, L, d], the mask [n * G or 1, 1, L, L] or None for a causal one."""
    if mask is not None and 1 < mask.shape[0] < q.shape[0]:
        mask = mask.repeat_interleave(q.shape[0] // mask.shape[0], dim=0)
    with sdpa_kernel(BACKENDS):
        return scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)


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
    seen = pattern.is_visible(distance.abs(), spec.window)
    if spec.causal:
        seen = ((seen | (event < sinks)) & (distance >= 0))[None]
    else:
        last = (event >= lengths[:, None] - sinks) & inside
        seen = (seen | last[:, None]) & (inside[:, None] | (distance == 0))
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)[:, None]
