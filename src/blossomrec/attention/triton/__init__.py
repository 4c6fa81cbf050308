"""Blossom attention as Triton kernels: forward, backward and selection, without a host's look."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.triton.launch import unsupported
from blossomrec.attention.triton.operators import attend, select_blocks


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
        ValueError: the kernels do not take the head size, group size, block size or type.
    """
    if reason := unsupported(q, k, block_size):
        raise ValueError(f"impl is 'triton': {reason}; impl='torch' takes all")
    q, k, v = (_rows(x.to(q.dtype)) for x in (q, k, v))
    chosen = selected
    if chosen is None:
        keys = _rows(block_keys.detach())
        chosen = select_blocks(q.detach(), keys, cu_seqlens, block_size, top_n, causal)
    chosen = cast(Tensor, chosen).to(torch.int32).contiguous()
    out, _ = attend(
        q,
        k,
        v,
        gates.contiguous(),
        chosen,
        cu_seqlens,
        block_size,
        window,
        sinks,
        causal,
    )
    return out, chosen


def _rows(x: Tensor) -> Tensor:
    """The kernels read rows of heads at any stride, but each head's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
