"""FlexAttention with the power-law pattern: a peer of the short-term path."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from blossomrec.attention.pattern import NearPattern

# Queries and keys of one tile of the mask.
TILE = 128


def power_law_mask(length: int, window: int, device: str) -> BlockMask:
    """Which tiles, and which pairs inside them, a causal history of ``length`` events sees.

    The tiles follow from the pattern's distances. Asking for every pair of events, as
    ``create_block_mask`` does, would take memory quadratic in the length.

    Args:
        length: a multiple of 128.
    """
    tiles = length // TILE
    back = torch.zeros(tiles, dtype=torch.bool)
    for distance in NearPattern(window).distances(length):
        # Seen from the last row of a tile, and from its first.
        back[[tile for tile in (distance // TILE, -(-distance // TILE)) if tile < tiles]] = True
    number = torch.arange(tiles)
    offset = number[:, None] - number
    seen = (offset >= 0) & back[offset.clamp(min=0)]
    count = seen.sum(1, dtype=torch.int32)
    # The tiles that are seen come first, rising.
    order = (~seen).to(torch.int8).argsort(dim=1, stable=True).to(torch.int32)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        return (distance >= 0) & NearPattern(window).is_visible(distance)

    return BlockMask.from_kv_blocks(
        count[None, None].to(device),
        order[None, None].contiguous().to(device),
        BLOCK_SIZE=TILE,
        mask_mod=visible,
    )


def compiled_attention(mask: BlockMask, *, compile: bool = True):
    """A function of q [B, H, L, d], k and v [B, G, L, d] that gives [B, H, L, d]."""
    attend = flex_attention
    if compile:
        # Each length is compiled for itself; after a few, torch would give up and not compile.
        torch.compiler.reset()
        attend = torch.compile(flex_attention, dynamic=False)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return cast(Tensor, attend(q, k, v, block_mask=mask, enable_gqa=grouped))

    return function
