"""How the kernels are cut and launched for each head size: few spills, fastest on an H200."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blossomrec.attention.backends.gpu.launch import Shape, unsupported

__all__ = ["PRECISION", "Launch", "launch_for", "unsupported"]

# Of products of float32: three of tensor cores, with which outputs and gradients stay within 1e-5
# of those in float32. Those of 16-bit numbers do not heed it.
PRECISION = "tf32x3"


@dataclass(frozen=True)
class Launch:
    """How the kernels are cut and launched.

    Attributes:
        keys: keys of one event that a step of the kernels of the queries takes.
        chunk: queries of an inverse list that one program takes.
        tile: queries and block keys of a tile of scores.
        forward, backward_queries, backward_keys, selection: of each kernel.
    """

    keys: int
    chunk: int
    tile: tuple[int, int]
    forward: Shape
    backward_queries: Shape
    backward_keys: Shape
    selection: Shape


def launch_for(size: int, per_group: int, dtype: torch.dtype) -> Launch:
    """The configuration for head size ``size`` and ``per_group`` query heads a key/value head."""
    stages = 1 if size > 32 or dtype == torch.float32 else 2
    # Four heads of 16 numbers: more programs side by side are worth fewer registers for each.
    small = size == 16 and per_group == 4 and dtype != torch.float32
    return Launch(
        # A group of 16 rows has columns for the keys of its 16 / R events: each brings few where
        # they are many or wide, or registers spill.
        keys=min(16, per_group * (1 if dtype == torch.float32 else 2)),
        chunk=256,
        tile=(64, 64),
        # A group of rows is the work of one warp.
        forward=Shape(per_group, 2, 80 if small else None),
        backward_queries=Shape(per_group, stages, 96 if small else None),
        backward_keys=Shape(per_group, stages, 80 if small else None),
        selection=Shape(4, 2),
    )
