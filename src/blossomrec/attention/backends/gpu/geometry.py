# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false
"""Where histories, their blocks and tiles begin in a packed batch, in one launch a question.

Sizes of all tensors here follow from the number of rows and of histories alone, so nothing waits
for the device and a captured CUDA graph stays valid for other lengths of the same total.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.kernels.geometry import (
    angles_kernel,
    blocks_kernel,
    bounds_kernel,
    tiles_kernel,
)
from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.attention.memo import per_batch
from blossomrec.attention.rotary import frequencies

# Number of a block that is not there: before the start of any history.
NO_BLOCK = -(1 << 40)
# Answers of one program, and histories that are added up at a time.
ANSWERS, HISTORIES = 128, 1_024


@per_batch
def tile_bounds(cu_seqlens: Tensor, tile: int, block_size: int) -> Tensor:
    """Where each history's tiles, and its complete blocks, begin among all, int64 [2, B+1]."""
    bounds = cu_seqlens.new_empty(2, len(cu_seqlens), dtype=torch.int64)
    form = {"TILE": tile, "S": block_size, "HISTORIES": HISTORIES}
    bounds_kernel[(1,)](cu_seqlens, bounds, len(cu_seqlens) - 1, **form)
    return bounds


@per_batch
def tile_table(
    cu_seqlens: Tensor, total: int, tile: int, block_size: int, together: int = 1
) -> Tensor:
    """The tiles of ``tile`` rows that the histories are cut into, int32 [tiles, 5].

    Fields: first packed row and length of the history, number of the tile inside it, number of the
    history, row of its first block key. There is room for as many tiles as ``total`` rows can need,
    rounded up to a multiple of ``together``; those in excess belong to a history without events.
    """
    bounds, histories = tile_bounds(cu_seqlens, tile, block_size), len(cu_seqlens) - 1
    tiles = -(-(total // tile + histories) // together) * together
    table = cu_seqlens.new_empty(tiles, 5, dtype=torch.int32)
    if tiles:
        grid = (cdiv(tiles, ANSWERS),)
        tiles_kernel[grid](cu_seqlens, bounds, table, histories, tiles, **_search(cu_seqlens))
    return table


def first_blocks(cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Row in the block keys of each history's block 0, and their number, int64 [B+1]."""
    return tile_bounds(cu_seqlens, block_size, block_size)[1]


@per_batch
def block_starts(cu_seqlens: Tensor, total: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Packed row of each complete block's first key, and its number, int64 [T // block_size].

    Zero and ``NO_BLOCK`` where there is none.
    """
    bounds, blocks = tile_bounds(cu_seqlens, block_size, block_size), total // block_size
    starts, numbers = bounds.new_empty(2, blocks).unbind()
    if blocks:
        blocks_kernel[(cdiv(blocks, ANSWERS),)](
            cu_seqlens,
            bounds,
            starts,
            numbers,
            len(cu_seqlens) - 1,
            blocks,
            S=block_size,
            NONE=NO_BLOCK,
            **_search(cu_seqlens),
        )
    return starts, numbers


@per_batch
def cos_sin(cu_seqlens: Tensor, total: int, pairs: int) -> Tensor:
    """Cosine and sine of the rotary angles of every packed row, float32 [T, 2, pairs]."""
    each = frequencies(pairs, torch.float32, cu_seqlens.device)
    angles = each.new_empty(total, pairs)
    if total and pairs:
        angles_kernel[(cdiv(total, ANSWERS),)](
            cu_seqlens,
            each,
            angles,
            len(cu_seqlens) - 1,
            total,
            PAIRS=pairs,
            PLACES=next_power_of_2(pairs),
            **_search(cu_seqlens),
        )
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def _search(cu_seqlens: Tensor) -> dict[str, int]:
    return {"STEPS": len(cu_seqlens).bit_length(), "ANSWERS": ANSWERS}
