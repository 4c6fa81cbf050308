"""Scoring and selecting blocks tile by tile, in float32, without a table of all scores."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from blossomrec.attention.packing import Packing
from blossomrec.attention.spec import BlossomSpec

# Rows of a tile: enough to keep the device busy, few enough to bound the scores held at a time.
TILE_ROWS = {"cpu": 512, "cuda": 4_096}


def select_blocks(
    q: Tensor, block_keys: Tensor, packing: Packing, longest: int, spec: BlossomSpec
) -> Tensor:
    """The ``top_n`` most important eligible blocks of each row and key/value head, int32 [T, G, n].

    A tile of rows is scored against one contiguous run of block keys: those of the histories it
    touches. Numbers rise, -1 comes last. ``longest`` is the length of the longest history.
    """
    total, heads, size = q.shape
    top_n, causal = spec.top_n, spec.causal
    groups = block_keys.shape[1]
    mean_q = q.float().view(total, groups, heads // groups, size).mean(2) / math.sqrt(size)
    keys = block_keys.float()
    if causal and spec.share == 1 and longest <= (top_n + 1) * packing.block_size:
        return _all_earlier(packing, groups, top_n)
    chosen = torch.full((total, groups, top_n), -1, dtype=torch.int32, device=q.device)
    if not len(block_keys):
        return chosen
    for rows, first, last in _tiles(packing, causal):
        importance = torch.einsum("tgd,jgd->tgj", mean_q[rows], keys[first:last])
        number = torch.arange(first, last, device=q.device) - packing.first_block[rows, None]
        own = packing.block[rows, None]
        eligible = number >= 0
        eligible &= (
            (number < own)
            if causal
            else (number < packing.num_blocks[rows, None]) & (number != own)
        )
        importance = importance.masked_fill(~eligible[:, None], -math.inf)
        best = _top(importance, top_n)
        local = number[:, None].expand_as(importance).gather(-1, best)
        kept = eligible[:, None].expand_as(importance).gather(-1, best)
        if spec.share < 1:
            kept &= reaches(importance, best, spec.share)
        last_number = torch.iinfo(torch.int64).max
        local = torch.where(kept, local, last_number).sort(-1).values
        local = torch.where(local == last_number, -1, local)
        chosen[rows, :, : local.shape[-1]] = local.to(torch.int32)
    return chosen


def reaches(importance: Tensor, best: Tensor, share: float) -> Tensor:
    """Which of the best blocks [..., n] are taken until their share is reached, bool [..., n].

    importance: [..., J], -inf where a block is not eligible; best: places of the largest.
    """
    shares = importance.softmax(-1).gather(-1, best)
    # What comes before each, the most important first; among equals the one with the lower place.
    order = best.argsort(-1)
    by_place = shares.gather(-1, order)
    order = order.gather(-1, by_place.sort(dim=-1, descending=True, stable=True).indices)
    ranked = shares.gather(-1, order)
    before = ranked.cumsum(-1) - ranked
    return torch.empty_like(best, dtype=torch.bool).scatter_(-1, order, before < share)


def _all_earlier(packing: Packing, groups: int, top_n: int) -> Tensor:
    """Every block before the own one, where there are at most ``top_n`` of them."""
    number = torch.arange(top_n, device=packing.position.device)
    chosen = torch.where(number < packing.block[:, None], number, -1).to(torch.int32)
    return chosen[:, None].expand(-1, groups, -1).contiguous()


def _tiles(packing: Packing, causal: bool) -> Iterator[tuple[slice, int, int]]:
    """Tiles of rows, each with the run of block keys its rows may choose from."""
    total, step = len(packing.position), TILE_ROWS[packing.position.device.type]
    starts = torch.arange(0, total, step, device=packing.position.device)
    ends = (starts + step).clamp(max=total) - 1
    first = packing.first_block[starts]
    # Causal: no row of the tile can reach past its last row's own block.
    reach = packing.block[ends] if causal else packing.num_blocks[ends]
    last = packing.first_block[ends] + reach
    for start, low, high in torch.stack((starts, first, last), 1).tolist():
        if high > low:
            yield slice(start, min(start + step, total)), low, high


def _top(importance: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest along the last dimension; among equals the lower index."""
    bits = importance.view(torch.int32)
    # Order of the integers = order of the floats; -0.0 and 0.0 are made equal first.
    bits = torch.where(importance == 0, 0, bits)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    places = torch.arange(importance.shape[-1], device=importance.device)
    keys = (ordered << 32) - places
    return keys.topk(min(count, importance.shape[-1]), dim=-1, sorted=False).indices
