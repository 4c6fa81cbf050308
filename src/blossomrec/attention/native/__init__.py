"""Blossom attention in C++ for processors: forward, backward, selection, its lessons, new events.

Compiled on first use with the system's compiler, loaded without PyTorch's headers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.native.library import missing
from blossomrec.attention.native.operators import attend, block_shares, select_blocks

__all__ = ["block_shares", "blossom_attention", "unsupported", "wanted"]


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
        ValueError: the tensors are not float32 on a CPU, or the operator cannot be compiled.
    """
    wanted("native", q, k, block_size)
    k, v, gates, block_keys = (x.to(q.dtype) for x in (k, v, gates, block_keys))
    cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
    chosen = selected
    if chosen is None:
        form = (block_size, top_n, causal)
        chosen = select_blocks(q.detach(), block_keys.detach(), cu_seqlens, *form)
    chosen = cast(Tensor, chosen).to(torch.int32)
    out, _ = attend(q, k, v, gates, chosen, cu_seqlens, block_size, window, sinks, causal)
    return out, chosen


def wanted(impl: str, q: Tensor, k: Tensor, block_size: int) -> bool:
    """Whether ``impl`` stands for the operator: by name, or "auto" where nothing stands in the way.

    Raises:
        ValueError: it does by name, and something stands in the way.
    """
    if impl not in ("auto", "native"):
        return False
    reason = unsupported(q, k, block_size)
    if reason and impl == "native":
        raise ValueError(f"impl is 'native': {reason}; impl='torch' takes all")
    return not reason


def unsupported(q: Tensor, k: Tensor, block_size: int) -> str:
    """What stands in the way of the operator, as a sentence; empty where nothing does."""
    if q.device.type != "cpu":
        return f"the device is {q.device}, the operator is for a CPU"
    if q.dtype != torch.float32:
        return f"the type is {q.dtype}, the operator takes torch.float32"
    return missing(q.shape[-1], q.shape[1] // k.shape[1], block_size)
