# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false
"""Selected blocks up to a share of the importance: how the kernel is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.geometry import tile_table
from blossomrec.attention.backends.gpu.kernels.share import share_kernel
from blossomrec.attention.backends.gpu.launch import Shape
from blossomrec.attention.backends.gpu.products import next_power_of_2
from blossomrec.attention.backends.operator import operator
from blossomrec.attention.spec import BlossomSpec

# Queries of a program, and block keys that it takes at a time.
QUERIES, BLOCKS = 64, 64
SHAPE = Shape(8, 2)
PRECISION = "tf32x3"


def up_to_share(
    q: Tensor, block_keys: Tensor, selected: Tensor, cu_seqlens: Tensor, spec: BlossomSpec
) -> Tensor:
    """Those of the ``selected`` blocks, int32 [T, G, n], that ``spec.share`` leaves.

    Args:
        q: [T, H, d].
        block_keys: [J, G, d].
        cu_seqlens: int32 [B+1].
    """
    if spec.share == 1:
        return selected
    form = spec.block_size, spec.causal, float(spec.share)
    return take_share(q, block_keys, selected, cu_seqlens, *form)


def _empty_take_share(q, block_keys, selected, cu_seqlens, block_size, causal, share):
    return torch.empty_like(selected)


@operator(_empty_take_share)
def take_share(
    q: Tensor,
    block_keys: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    block_size: int,
    causal: bool,
    share: float,
) -> Tensor:
    """Those of the ``selected`` blocks, int32 [T, G, n], that are taken until ``share`` is reached.

    Blocks are taken from the most important one down; numbers rise, -1 comes last.
    """
    total, heads, size = q.shape
    groups, top_n = selected.shape[1:]
    q, block_keys = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, block_keys))
    selected, table = selected.contiguous(), tile_table(cu_seqlens, total, QUERIES, block_size)
    taken = torch.empty_like(selected)
    share_kernel[(len(table) * groups,)](
        q,
        block_keys,
        table,
        selected,
        taken,
        share,
        1 / math.sqrt(size),
        *q.stride()[:2],
        *block_keys.stride()[:2],
        **constants(groups, heads // groups, size, block_size, top_n, causal),
        **SHAPE.options(),
    )
    return taken


def constants(
    groups: int, per_group: int, size: int, block_size: int, top_n: int, causal: bool
) -> dict[str, object]:
    """What the kernel is compiled with."""
    sizes = {"G": groups, "R": per_group, "D": size, "S": block_size, "N": top_n}
    tiles = {"PLACES": next_power_of_2(top_n), "QUERIES": QUERIES, "BLOCKS": BLOCKS}
    return {**sizes, **tiles, "CAUSAL": causal, "PRECISION": PRECISION}
