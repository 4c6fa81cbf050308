"""Blossom attention in CUDA C++ for 16-bit types: each warp for itself, scores in registers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.backends.cuda import operators
from blossomrec.attention.backends.cuda.launch import unsupported
from blossomrec.attention.backends.gpu.kernel_pattern import LONGEST
from blossomrec.attention.backends.gpu.share import up_to_share
from blossomrec.attention.backends.operator import numbers_of
from blossomrec.attention.spec import BlossomSpec, Inputs

__all__ = ["attend", "unsupported"]


def attend(inputs: Inputs, spec: BlossomSpec, selected: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments."""
    q, k, v, block_keys, gates, cu_seqlens = inputs
    k, v, gates = k.to(q.dtype), v.to(q.dtype), gates.to(q.dtype)
    # A base beyond all histories leaves the distance 1, like any other such base.
    base = min(float(spec.power_base), float(LONGEST))
    chosen, numbers = selected, [*numbers_of(spec), *base.as_integer_ratio()]
    if chosen is None:
        scored = q.detach(), block_keys.detach()
        chosen = operators.select_blocks(*scored, cu_seqlens, numbers)
        chosen = up_to_share(*scored, chosen, cu_seqlens, spec)
    chosen = cast(Tensor, chosen).to(torch.int32).contiguous()
    out, _ = operators.attend(q, k, v, gates, chosen, cu_seqlens, numbers)
    return out, chosen
