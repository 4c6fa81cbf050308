"""Blossom attention without a kernel of its own: linear memory, differentiable, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.backends.torch.dense import dense_attention
from blossomrec.attention.backends.torch.selection import select_blocks
from blossomrec.attention.backends.torch.sparse import sparse_attention
from blossomrec.attention.buckets import Buckets
from blossomrec.attention.packing import Packing, histories
from blossomrec.attention.spec import BlossomSpec, Inputs, Target

# Histories up to this length are attended densely: below it the gathers cost more.
DENSE_LENGTH = {"cpu": 256, "cuda": 512}


def attend(inputs: Inputs, spec: BlossomSpec, selected: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments."""
    q, k, v, block_keys, gates, cu_seqlens = inputs
    block_size, top_n, causal = spec.block_size, spec.top_n, spec.causal
    packing = Packing.of(cu_seqlens, len(q), block_size)
    shortest, longest = torch.stack(packing.length.aminmax()).tolist()
    selects_all = selected is None and causal and longest <= (top_n + 1) * block_size
    if selected is None:
        with torch.no_grad():
            selected = select_blocks(q, block_keys, packing, longest, top_n, causal)

    def dense(cu_seqlens: Tensor, *rows: Tensor) -> Tensor:
        buckets = Buckets.of(cu_seqlens, len(rows[0]), min(longest, limit))
        return dense_attention(*rows, buckets, spec, selects_all=selects_all)

    def sparse(cu_seqlens: Tensor, *rows: Tensor) -> Tensor:
        packing = Packing.of(cu_seqlens, len(rows[0]), block_size)
        return sparse_attention(*rows, packing, longest, spec)

    limit = DENSE_LENGTH[q.device.type]
    rows = (q, k, v, gates, selected)
    if longest <= limit:
        out = dense(cu_seqlens, *rows)
    elif shortest > limit:
        out = sparse(cu_seqlens, *rows)
    else:
        out = _by_length(cu_seqlens.diff() > limit, cu_seqlens, rows, sparse, dense)
    return out, selected


def unsupported(target: Target) -> str:
    """What is not taken, as a sentence: nothing."""
    return ""


def _by_length(is_long, cu_seqlens, rows, sparse, dense) -> Tensor:
    """Long histories through one function, short ones through the other."""
    lengths = cu_seqlens.diff()
    owner = is_long[histories(cu_seqlens, len(rows[0]))]
    places, results = [], []
    for attend, chosen, mine in ((sparse, is_long, owner), (dense, ~is_long, ~owner)):
        place = mine.nonzero().flatten()
        part = torch.nn.functional.pad(lengths[chosen].cumsum(0), (1, 0)).to(cu_seqlens.dtype)
        results.append(attend(part, *(x.index_select(0, place) for x in rows)))
        places.append(place)
    return torch.cat(results).index_select(0, torch.cat(places).argsort())
