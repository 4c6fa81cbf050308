"""Attention of every event over a few gathered keys: linear in the length of a history.

Work goes through the packed rows in tiles. A tile gathers the keys its rows see, so that no tensor
grows with the square of a length; the backward pass gathers them again instead of keeping them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention import pattern
from blossomrec.attention.packing import Packing

# Rows of a tile: enough to keep the device busy, few enough to stay in a CPU's cache.
TILE_ROWS = {"cpu": 512, "cuda": 8_192}


@dataclass(frozen=True)
class BlockKeys:
    """Keys of the long-term path: the own block and the selected ones, in the padded layout."""

    packing: Packing
    selected: Tensor
    causal: bool

    def _padded(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Rows of the padded layout, own block first, and whether each is chosen, [C, G, n+1]."""
        selected = self.selected[rows].long()
        own = self.packing.block[rows, None, None].expand(-1, selected.shape[1], 1)
        number = torch.cat((own, selected), dim=-1)
        chosen = number >= 0
        # An unused place reads the own block again; the mask hides it.
        number = torch.where(chosen, number, own)
        return number + self.packing.first_padded[rows, None, None], chosen

    def _flat(self, rows: slice) -> Tensor:
        padded, _ = self._padded(rows)
        heads = torch.arange(padded.shape[1], device=padded.device)[:, None]
        return (padded + heads * self.packing.padded_blocks).flatten()

    def gather(self, x: Tensor, rows: slice) -> Tensor:
        """[G, padded_blocks, S, d] to [C, G, (n+1) * S, d]."""
        groups, _, block, size = x.shape
        taken = x.view(-1, block * size).index_select(0, self._flat(rows))
        return taken.view(rows.stop - rows.start, groups, -1, size)

    def scatter(self, into: Tensor, gathered: Tensor, rows: slice) -> None:
        """Add [C, G, (n+1) * S, d] back to where it was gathered from."""
        _, _, block, size = into.shape
        flat = into.view(-1, block * size)
        _accumulate(flat, self._flat(rows), gathered.reshape(-1, block * size))

    def mask(self, rows: slice) -> Tensor:
        """Which gathered keys are seen, bool [C, G, (n+1) * S]."""
        block = self.packing.block_size
        _, chosen = self._padded(rows)
        mask = chosen[..., None].expand(-1, -1, -1, block).clone()
        place = torch.arange(block, device=chosen.device)
        position, length = self.packing.position[rows], self.packing.length[rows]
        last = position if self.causal else length - 1
        mask[:, :, 0] = (place <= (last - position // block * block)[:, None])[:, None]
        return mask.flatten(2)


@dataclass(frozen=True)
class NearKeys:
    """Keys of the short-term path: fixed distances back (and ahead), and the sinks."""

    packing: Packing
    distances: list[int]
    window: int
    sinks: int
    causal: bool

    def _offsets(self) -> list[int]:
        behind = [-distance for distance in self.distances]
        return behind if self.causal else behind + [one for one in self.distances if one]

    def _places(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Packed rows of the keys, clamped into the batch, and which are seen, [C, M]."""
        packing = self.packing
        position, length = packing.position[rows, None], packing.length[rows, None]
        offsets = torch.tensor(self._offsets(), device=position.device)
        near = position + offsets
        seen = (near >= 0) & (near < length)
        sink = torch.arange(self.sinks, device=position.device)
        sink = sink.expand(len(position), -1) if self.causal else length - 1 - sink
        distance = position - sink
        inside = (sink >= 0) & ((distance >= 0) if self.causal else (sink < length))
        new = inside & ~pattern.is_visible(distance.abs(), self.window)
        places = torch.cat((near, sink), 1) + packing.start[rows, None]
        return places.clamp(0, len(packing.position) - 1), torch.cat((seen, new), 1)

    def gather(self, x: Tensor, rows: slice) -> Tensor:
        """[T, G, d] to [C, G, M, d]."""
        places, _ = self._places(rows)
        taken = x.flatten(1).index_select(0, places.flatten())
        return taken.view(*places.shape, *x.shape[1:]).transpose(1, 2)

    def scatter(self, into: Tensor, gathered: Tensor, rows: slice) -> None:
        """Add [C, G, M, d] back to where it was gathered from."""
        by_place = gathered.transpose(1, 2)
        offsets, total = self._offsets(), len(into)
        # A distance is a plain shift of the tile; hidden keys carry a zero gradient.
        for index, offset in enumerate(offsets):
            low, high = max(rows.start + offset, 0), min(rows.stop + offset, total)
            if low < high:
                shift = rows.start + offset
                into[low:high] += by_place[low - shift : high - shift, index]
        if self.sinks:
            places, _ = self._places(rows)
            sinks = by_place[:, len(offsets) :].flatten(0, 1).flatten(1)
            _accumulate(into.flatten(1), places[:, len(offsets) :].flatten(), sinks)

    def mask(self, rows: slice) -> Tensor:
        """Which gathered keys are seen, bool [C, 1, M]."""
        return self._places(rows)[1][:, None]


def _accumulate(into: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add rows in an order that does not change from call to call."""
    if into.is_cuda:
        into.index_put_((rows,), values, accumulate=True)
    else:
        into.index_add_(0, rows, values)


class SparseAttention(torch.autograd.Function):
    """Softmax attention of every row over the keys that a key set gathers for it."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, keys: BlockKeys | NearKeys) -> Tensor:
        groups = k.shape[0] if isinstance(keys, BlockKeys) else k.shape[1]
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=_exact(q))
        with torch.autocast(q.device.type, enabled=False):
            for rows in _tiles(q):
                tile = _Tile.of(q, k, v, keys, rows, groups)
                lse[rows] = tile.scores.logsumexp(-1).flatten(1)
                weights = tile.scores.softmax(-1)
                out[rows] = (weights @ tile.v).flatten(1, 2).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.keys, ctx.groups = keys, groups
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, out, lse = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=_exact(q)) for x in (k, v))
        with torch.autocast(q.device.type, enabled=False):
            for rows in _tiles(q):
                tile = _Tile.of(q, k, v, ctx.keys, rows, ctx.groups)
                grad_out = _grouped(grad, rows, ctx.groups)
                total = lse[rows].view(len(grad_out), ctx.groups, -1, 1)
                weights = (tile.scores - total).exp()
                mean = (grad_out * _grouped(out, rows, ctx.groups)).sum(-1, keepdim=True)
                grad_scores = weights * (grad_out @ tile.v.mT - mean) / math.sqrt(q.shape[-1])
                grad_q[rows] = (grad_scores @ tile.k).flatten(1, 2).to(q.dtype)
                ctx.keys.scatter(grad_k, grad_scores.mT @ tile.q, rows)
                ctx.keys.scatter(grad_v, weights.mT @ grad_out, rows)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


@dataclass(frozen=True)
class _Tile:
    """One tile, in float32 or better: q [C, G, R, d], k and v [C, G, M, d], scores [C, G, R, M]."""

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor

    @classmethod
    def of(cls, q, k, v, keys: BlockKeys | NearKeys, rows: slice, groups: int) -> _Tile:
        exact = _exact(q)
        tile_q = _grouped(q, rows, groups)
        tile_k, tile_v = keys.gather(k, rows).to(exact), keys.gather(v, rows).to(exact)
        scores = tile_q @ tile_k.mT / math.sqrt(q.shape[-1])
        scores.masked_fill_(~keys.mask(rows)[:, :, None], -math.inf)
        return cls(tile_q, tile_k, tile_v, scores)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _grouped(x: Tensor, rows: slice, groups: int) -> Tensor:
    """Rows of [T, H, d] as [C, G, R, d] in float32 or better."""
    return x[rows].to(_exact(x)).unflatten(1, (groups, -1))


def _tiles(x: Tensor) -> Iterator[slice]:
    step = TILE_ROWS[x.device.type]
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))
