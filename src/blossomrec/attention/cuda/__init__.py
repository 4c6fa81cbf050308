"""Blossom attention in CUDA C++ for 16-bit types: each warp for itself, scores in registers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.cuda.launch import unsupported
from blossomrec.attention.cuda.operators import attend, select_blocks


def blossom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_keys: Tensor,
    gates: Tensor,
    cu_seqlens: Tensor,
    *,
    block_size: int,
    top_n: int,
    window: int,
    sinks: int,
    causal: bool,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments.

    Raises:
        ValueError: the kernels do not take these sizes or types.
    """
    sizes = {"block_size": block_size, "top_n": top_n, "window": window, "sinks": sinks}
    if reason := unsupported(q, k, gates, **sizes):
        raise ValueError(f"impl is 'cuda': {reason}; impl='triton' takes more")
    k, v = k.to(q.dtype), v.to(q.dtype)
    chosen = selected
    if chosen is None:
        chosen = select_blocks(q.detach(), block_keys.detach(), cu_seqlens, top_n, causal)
    chosen = cast(Tensor, chosen).to(torch.int32).contiguous()
    out, _ = attend(q, k, v, gates, chosen, cu_seqlens, window, causal)
    return out, chosen
