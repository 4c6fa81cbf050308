"""Measures of a block selector: what it finds, how much attention it keeps, how it spreads.

"Everything" is what dense attention with the same queries and keys would see: all earlier events
and the event itself, or both directions. A *choosing* event has more eligible blocks than may be
selected; for the others any selector is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.attention.packing import Packing

# Attention scores held at a time.
_TILE_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Mass:
    """Shares of the attention to everything, float32 [C, G], mean over the heads of a group.

    Attributes:
        covered: share of the selected blocks.
        best: share of the n eligible blocks with the largest shares, which no selection exceeds.
        own: share of the event's own block, which is attended without being selected.
    """

    covered: Tensor
    best: Tensor
    own: Tensor


def planted_hits(selected: Tensor, rows: Tensor, planted: Tensor) -> Tensor:
    """Whether each named block is among those selected for its event.

    The mean over events is recall@n, by key/value head; ``any(-1)`` joins the heads.

    Args:
        selected: int32 [T, G, n].
        rows: int64 [M], packed rows of the events.
        planted: int64 [M], a block number in the history of each.

    Returns:
        bool [M, G].
    """
    return (selected[rows] == planted[:, None, None]).any(-1)


def choosing_rows(
    cu_seqlens: Tensor, total: int, *, block_size: int, top_n: int, causal: bool
) -> Tensor:
    """Packed rows of the events with more than ``top_n`` eligible blocks, int64 [C]."""
    eligible = _eligible_blocks(Packing.of(cu_seqlens, total, block_size), causal)
    return (eligible > top_n).nonzero()[:, 0]


def attention_coverage(
    q: Tensor,
    k: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    *,
    block_size: int,
    causal: bool,
) -> Mass:
    """How much of the attention to everything falls on the selected blocks, and how much could.

    Softmax of q k / sqrt(d) in float32, over every event that dense attention would see, summed by
    block. Memory grows with the longest history, not with its square.

    Args:
        q: [T, H, d] and k: [T, G, d], rotary applied.
        selected: int32 [T, G, n].
        cu_seqlens: int32 [B+1].
        rows: int64 [C], packed rows of the events that are measured.
    """
    packing = Packing.of(cu_seqlens, len(q), block_size)
    parts = torch.empty(3, len(rows), k.shape[1], device=q.device)
    order = rows.argsort()
    for history in packing.history[rows].unique().tolist():
        first, last = cu_seqlens[history : history + 2].tolist()
        mine = order[packing.history[rows[order]] == history]
        tile = max(1, _TILE_ELEMENTS // (q.shape[1] * (last - first)))
        for places in mine.split(tile):
            chosen = rows[places]
            # Under causality, nothing behind the tile's last event is seen.
            seen = k[first : int(chosen[-1]) + 1] if causal else k[first:last]
            mass = _mass_by_block(q[chosen], seen, packing.position[chosen], block_size, causal)
            parts[:, places] = _shares(mass, selected[chosen], packing, chosen, causal)
    return Mass(*parts)


def _mass_by_block(q: Tensor, k: Tensor, position: Tensor, size: int, causal: bool) -> Tensor:
    """Attention of q [C, H, d] to one history's k [L, G, d], by block: float32 [C, G, blocks]."""
    grouped = q.float().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("cgrd,lgd->cgrl", grouped, k.float()) / math.sqrt(q.shape[-1])
    if causal:
        later = torch.arange(len(k), device=k.device) > position[:, None]
        scores = scores.masked_fill(later[:, None, None], -math.inf)
    shares = scores.softmax(-1).mean(2)
    shares = pad(shares, (0, -len(k) % size))
    return shares.unflatten(-1, (-1, size)).sum(-1)


def _shares(mass: Tensor, selected: Tensor, packing: Packing, rows: Tensor, causal: bool) -> Tensor:
    """Covered, best and own share, [3, C, G], from mass [C, G, blocks] and selected [C, G, n]."""
    own = packing.block[rows, None]
    number = torch.arange(mass.shape[-1], device=mass.device)
    eligible = (number < own) if causal else (number < packing.num_blocks[rows, None])
    able = mass.masked_fill(~(eligible & (number != own))[:, None], 0.0)
    covered = mass.gather(-1, selected.clamp(min=0).long()).masked_fill(selected < 0, 0.0).sum(-1)
    best = able.topk(min(selected.shape[-1], mass.shape[-1])).values.sum(-1)
    inside = mass.gather(-1, own[:, None].expand_as(covered[..., None]))[..., 0]
    return torch.stack((covered, best, inside))


@dataclass(frozen=True)
class Hubness:
    """How unevenly the choosing events of a history choose, mean over histories, float32 [G].

    Attributes:
        largest_share: share of these events that select the block that most of them select.
        entropy: of the distribution of all choices over the history's complete blocks, over its
            largest possible value: 1 where all blocks are chosen equally often, 0 for one alone.
    """

    largest_share: Tensor
    entropy: Tensor


def hubness(selected: Tensor, cu_seqlens: Tensor, *, block_size: int, causal: bool) -> Hubness:
    """Whether a few blocks draw most choices, from ``selected``, int32 [T, G, n].

    NaN where no event has anything to choose.
    """
    total, groups, top_n = selected.shape
    packing = Packing.of(cu_seqlens, total, block_size)
    rows = choosing_rows(cu_seqlens, total, block_size=block_size, top_n=top_n, causal=causal)
    chosen = selected[rows]
    blocks = packing.first_block[rows, None, None] + chosen.clamp(min=0)
    heads = torch.arange(groups, device=selected.device)[:, None].expand_as(blocks)
    choices = torch.zeros(groups, total // block_size, device=selected.device)
    choices.index_put_((heads, blocks), (chosen >= 0).float(), accumulate=True)
    shares, entropies = [], []
    for history in packing.history[rows].unique().tolist():
        mine = rows[packing.history[rows] == history]
        first, blocks_there = int(packing.first_block[mine[0]]), int(packing.num_blocks[mine[0]])
        counts = choices[:, first : first + blocks_there]
        shares.append(counts.amax(-1) / len(mine))
        part = counts / counts.sum(-1, keepdim=True)
        entropies.append(-part.xlogy(part).sum(-1) / math.log(blocks_there))
    if not shares:
        return Hubness(*torch.full((2, groups), math.nan, device=selected.device))
    return Hubness(torch.stack(shares).mean(0), torch.stack(entropies).mean(0))


def gate_balance(gates: Tensor) -> Tensor:
    """Long-term gate over the sum of both, mean over events: [T, H, 2] to [H]."""
    return (gates[..., 0] / gates.sum(-1)).mean(0)


def selected_distances(selected: Tensor, cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Distance in events from each event's own block to each block selected for it, from start to
    start, without sign: int64 [number of selected blocks], from int32 [T, G, n]."""
    own = Packing.of(cu_seqlens, len(selected), block_size).block[:, None, None]
    return ((own - selected).abs() * block_size)[selected >= 0]


def _eligible_blocks(packing: Packing, causal: bool) -> Tensor:
    """Number of blocks that each row may select from, int64 [T]."""
    if causal:
        return packing.block
    return packing.num_blocks - (packing.block < packing.num_blocks).long()
