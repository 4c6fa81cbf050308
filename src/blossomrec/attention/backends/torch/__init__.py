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
    q, _, _, block_keys, _, cu_seqlens = inputs
    block_size, top_n = spec.block_size, spec.top_n
    packing = Packing.of(cu_seqlens, len(q), block_size)
    shortest, longest = torch.stack(packing.length.aminmax()).tolist()
    takes_all = selected is None and spec.causal and spec.share == 1
    selects_all = takes_all and longest <= (top_n + 1) * block_size
    if selected is None:
        with torch.no_grad():
            selected = select_blocks(q, block_keys, packing, longest, spec)

    def dense(inputs: Inputs, selected: Tensor) -> Tensor:
        buckets = Buckets.of(inputs.cu_seqlens, len(inputs.q), min(longest, limit))
        return dense_attention(inputs, selected, buckets, spec, selects_all=selects_all)

    def sparse(inputs: Inputs, selected: Tensor) -> Tensor:
        return sparse_attention(inputs, selected, longest, spec)

    limit = DENSE_LENGTH[q.device.type]
    if longest <= limit:
        out = dense(inputs, selected)
    elif shortest > limit:
        out = sparse(inputs, selected)
    else:
        out = _by_length(cu_seqlens.diff() > limit, inputs, selected, sparse, dense)
    return out, selected


def unsupported(target: Target) -> str:
    """What is not taken, as a sentence: nothing."""
    return ""


def _by_length(is_long: Tensor, inputs: Inputs, selected: Tensor, sparse, dense) -> Tensor:
    """Long histories through one function, short ones through the other."""
    q, k, v, block_keys, gates, cu_seqlens = inputs
    lengths, owner = cu_seqlens.diff(), is_long[histories(cu_seqlens, len(q))]
    places, results = [], []
    for attend, chosen, mine in ((sparse, is_long, owner), (dense, ~is_long, ~owner)):
        place = mine.nonzero().flatten()
        part = torch.nn.functional.pad(lengths[chosen].cumsum(0), (1, 0)).to(cu_seqlens.dtype)
        rows = [x.index_select(0, place) for x in (q, k, v, gates, selected)]
        given = Inputs(rows[0], rows[1], rows[2], block_keys, rows[3], part)
        results.append(attend(given, rows[4]))
        places.append(place)
    return torch.cat(results).index_select(0, torch.cat(places).argsort())
