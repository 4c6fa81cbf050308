"""Blossom attention in C++ for processors: forward, backward, selection, new events.

Compiled on first use with the system's compiler, loaded without PyTorch's headers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu import operators
from blossomrec.attention.backends.cpu.library import missing
from blossomrec.attention.backends.operator import numbers_of
from blossomrec.attention.spec import BlossomSpec, Inputs, Target

__all__ = ["attend", "unsupported"]


def attend(inputs: Inputs, spec: BlossomSpec, selected: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments."""
    q, k, v, block_keys, gates, cu_seqlens = inputs
    k, v, gates, block_keys = (x.to(q.dtype) for x in (k, v, gates, block_keys))
    cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
    chosen, numbers = selected, numbers_of(spec)
    if chosen is None:
        chosen = operators.select_blocks(q.detach(), block_keys.detach(), cu_seqlens, numbers)
    chosen = cast(Tensor, chosen).to(torch.int32)
    out, _ = operators.attend(q, k, v, gates, chosen, cu_seqlens, numbers)
    return out, chosen


def unsupported(target: Target) -> str:
    """What stands in the way of the operator, as a sentence; empty where nothing does."""
    if target.device != "cpu":
        return f"the device is {target.device}, the operator is for a CPU"
    if target.dtype != torch.float32:
        return f"the type is {target.dtype}, the operator takes torch.float32"
    spec = target.spec
    for name, value, usual in (("share", spec.share, 1), ("power_base", spec.power_base, 2)):
        if value != usual:
            return f"{name} is {value}, the operator takes {usual}"
    return missing(target.heads.size, target.heads.per_group, spec.block_size)
