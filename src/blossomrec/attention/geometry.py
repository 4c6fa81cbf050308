"""What the kernels must know of a packed batch and of the pattern, made without a look at lengths.

Sizes of all tensors here follow from the number of rows and of histories alone, so nothing waits
for the device and a captured CUDA graph stays valid for other lengths of the same total.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec import kernels
from blossomrec.attention.memo import per_batch
from blossomrec.attention.packing import tile_bounds


@per_batch
def tile_table(cu_seqlens: Tensor, total: int, tile: int, block_size: int) -> Tensor:
    """The tiles of ``tile`` rows that the histories are cut into, int32 [tiles, 5].

    Fields: first packed row and length of the history, number of the tile inside it, number of the
    history, row of its first block key. There is room for as many tiles as ``total`` rows can need;
    the tiles in excess belong to a history without events.
    """
    if kernels.place_rows(cu_seqlens):
        from blossomrec.kernels.geometry import tiles_of

        bounds = tile_bounds(cu_seqlens, tile, block_size)
        return tiles_of(cu_seqlens, bounds, total // tile + len(cu_seqlens) - 1)
    lengths = cu_seqlens.diff()
    ends = ((lengths + tile - 1) // tile).cumsum(0)
    blocks = (lengths // block_size).cumsum(0)
    number = torch.arange(total // tile + len(lengths), device=cu_seqlens.device)
    history = torch.searchsorted(ends, number, right=True)
    used = history < len(lengths)
    history = torch.where(used, history, 0)
    first = torch.cat((ends.new_zeros(1), ends))[history]
    fields = (
        cu_seqlens[history],
        torch.where(used, lengths[history], 0),
        number - first,
        history,
        torch.cat((blocks.new_zeros(1), blocks))[history],
    )
    return torch.stack([field.to(torch.int32) for field in fields], dim=1)


@dataclass(frozen=True)
class Pattern:
    """The two paths as constants of the kernels.

    Attributes:
        near: neighbouring blocks, on one side, that hold every visible distance up to
            ``near * block_size``.
        first_far, far: exponent of the first power of two beyond, and how many of them the longest
            possible history has.
        sink_blocks: blocks that can hold sinks.
    """

    block_size: int
    window: int
    sinks: int
    causal: bool
    near: int
    first_far: int
    far: int
    sink_blocks: int

    @staticmethod
    def of(block_size: int, window: int, sinks: int, causal: bool, total: int) -> Pattern:
        near = max(1, -(-(window - 1) // block_size))
        first_far = (near * block_size).bit_length()
        # The last sinks of a history need not begin where a block does.
        sink_blocks = -(-sinks // block_size) + (sinks > 0 and not causal)
        return Pattern(
            block_size=block_size,
            window=window,
            sinks=sinks,
            causal=causal,
            near=near,
            first_far=first_far,
            far=max(0, (total - 1).bit_length() - first_far),
            sink_blocks=sink_blocks,
        )

    def query_constants(self, keys: int) -> dict[str, int | bool]:
        """Constants of the kernels of the queries, which take ``keys`` far keys at a step."""
        sides = 1 if self.causal else 2
        return {
            "KEYS": keys,
            "S": self.block_size,
            "WINDOW": self.window,
            "SINKS": self.sinks,
            "CAUSAL": self.causal,
            "NEAR": self.near,
            "NEAR_STEPS": sides * self.near + 1 + self.sink_blocks,
            "FIRST_FAR": self.first_far,
            "FAR_STEPS": -(-self.far // keys),
        }

    def key_constants(self) -> dict[str, int | bool]:
        """Constants of the kernel of the keys."""
        return {
            "S": self.block_size,
            "WINDOW": self.window,
            "CAUSAL": self.causal,
            "NEAR": self.near,
            "FIRST_FAR": self.first_far,
            "SINK_BLOCKS": self.sink_blocks,
        }
