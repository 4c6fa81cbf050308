"""Blossom attention as Triton kernels: forward, backward and selection, without a host's look."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.share import up_to_share
from blossomrec.attention.backends.operator import numbers_of
from blossomrec.attention.backends.triton import operators
from blossomrec.attention.backends.triton.launch import unsupported
from blossomrec.attention.spec import BlossomSpec, Inputs

__all__ = ["attend", "unsupported"]


def attend(inputs: Inputs, spec: BlossomSpec, selected: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments."""
    q, k, v, block_keys, gates, cu_seqlens = inputs
    q, k, v = (_rows(x.to(q.dtype)) for x in (q, k, v))
    chosen, numbers = selected, numbers_of(spec)
    if chosen is None:
        scored = q.detach(), _rows(block_keys.detach())
        chosen = operators.select_blocks(*scored, cu_seqlens, numbers)
        chosen = up_to_share(*scored, chosen, cu_seqlens, spec)
    chosen = cast(Tensor, chosen).to(torch.int32).contiguous()
    out, _ = operators.attend(q, k, v, gates.contiguous(), chosen, cu_seqlens, numbers)
    return out, chosen


def _rows(x: Tensor) -> Tensor:
    """The kernels read rows of heads at any stride, but each head's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
