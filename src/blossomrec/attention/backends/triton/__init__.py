"""Blossom attention as Triton kernels: forward, backward and selection, without a host's look."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from blossomrec.attention.backends.triton import operators
from blossomrec.attention.backends.triton.launch import unsupported
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
    q, k, v = (_rows(x.to(q.dtype)) for x in (q, k, v))
    chosen = selected
    if chosen is None:
        keys, form = _rows(block_keys.detach()), (spec.block_size, spec.top_n, spec.causal)
        chosen = operators.select_blocks(q.detach(), keys, cu_seqlens, *form)
    chosen = cast(Tensor, chosen).to(torch.int32).contiguous()
    form = (spec.block_size, spec.window, spec.sinks, spec.causal)
    out, _ = operators.attend(q, k, v, gates.contiguous(), chosen, cu_seqlens, *form)
    return out, chosen


def _rows(x: Tensor) -> Tensor:
    """The kernels read rows of heads at any stride, but each head's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
