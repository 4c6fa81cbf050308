"""Blossom attention in CUDA C++ for 16-bit types: each warp for itself, scores in registers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.backends.cuda import operators
from blossomrec.attention.backends.cuda.launch import unsupported
from blossomrec.attention.spec import BlossomSpec

__all__ = ["attend", "unsupported"]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_keys: Tensor,
    gates: Tensor,
    cu_seqlens: Tensor,
    spec: BlossomSpec,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments."""
    k, v, gates = k.to(q.dtype), v.to(q.dtype), gates.to(q.dtype)
    chosen = selected
    if chosen is None:
        form = (spec.top_n, spec.causal)
        chosen = operators.select_blocks(q.detach(), block_keys.detach(), cu_seqlens, *form)
    chosen = cast(Tensor, chosen).to(torch.int32).contiguous()
    form = (spec.window, spec.causal)
    out, _ = operators.attend(q, k, v, gates, chosen, cu_seqlens, *form)
    return out, chosen
