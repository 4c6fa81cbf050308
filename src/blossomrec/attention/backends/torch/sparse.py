"""Attention of every event over a few gathered keys: linear in the length of a history.

Work goes through the packed rows in tiles. A tile gathers the keys its rows see, so that no tensor
grows with the square of a length; the backward pass gathers them again instead of keeping them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention.packing import Packing
from blossomrec.attention.pattern import NearPattern
from blossomrec.attention.spec import BlossomSpec, Inputs

# Rows of a tile: enough to keep the device busy, few enough to stay in a CPU's cache.
TILE_ROWS = {"cpu": 512, "cuda": 8_192}


@dataclass(frozen=True)
class BlockKeys:
    """Keys of the long-term path: the own block and the selected ones, in the padded layout.

    Of a union without those of ``near``, the keys of the short-term path.
    """

    packing: Packing
    selected: Tensor
    causal: bool
    near: NearKeys | None = None

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
        if self.near is not None:
            own = self.packing.block[rows, None, None].expand(-1, mask.shape[1], 1)
            number = torch.cat((own, self.selected[rows].long()), -1)[..., None]
            mask &= ~self.near.sees(number * block + place, rows)
        return mask.flatten(2)


@dataclass(frozen=True)
class NearKeys:
    """Keys of the short-term path: fixed distances back (and ahead), and the sinks."""

    packing: Packing
    distances: list[int]
    pattern: NearPattern
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
        new = inside & ~self.pattern.is_visible(distance.abs())
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

    def sees(self, positions: Tensor, rows: slice) -> Tensor:
        """Whether keys at some positions of each row's history are among these, bool [C, ...]."""
        shape = (-1,) + (1,) * (positions.dim() - 1)
        position, length = (
            x[rows].view(shape) for x in (self.packing.position, self.packing.length)
        )
        visible = self.pattern.is_visible((position - positions).abs())
        if self.causal:
            return visible | (positions < self.sinks)
        return visible | (positions >= length - self.sinks)


def _accumulate(into: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add rows in an order that does not change from call to call."""
    if into.is_cuda:
        into.index_put_((rows,), values, accumulate=True)
    else:
        into.index_add_(0, rows, values)


KeySets = tuple[BlockKeys | NearKeys, ...]


def sparse_attention(inputs: Inputs, selected: Tensor, longest: int, spec: BlossomSpec) -> Tensor:
    """Output [T, H, d], both paths fused; ``longest`` is the length of the longest history."""
    q, k, v, _, gates, cu_seqlens = inputs
    packing = Packing.of(cu_seqlens, len(q), spec.block_size)
    blocks, near = sets = _key_sets(selected, packing, longest, spec)
    padded = packing.pad(k), packing.pad(v)
    if spec.is_union:
        return SparseAttention.apply(q, gates, sets, *padded, k, v)
    long = SparseAttention.apply(q, None, (blocks,), *padded)
    short = SparseAttention.apply(q, None, (near,), k, v)
    return gates[..., :1] * long + gates[..., 1:] * short


@torch.no_grad()
def near_share(
    q: Tensor, k: Tensor, bias: Tensor, selected: Tensor, cu_seqlens: Tensor, spec: BlossomSpec
) -> Tensor:
    """Of the weights of a union, the share on the keys of the short-term path, [T, H]."""
    packing, longest = Packing.of(cu_seqlens, len(q), spec.block_size), int(cu_seqlens.diff().max())
    sets = _key_sets(selected, packing, longest, spec)
    padded, shares = packing.pad(k), []
    for rows in _tiles(q):
        tile = _Tile.of(q, bias, sets, (padded, padded, k, k), rows, k.shape[1])
        shares.append(tile.scores.softmax(-1)[..., -tile.counts[-1] :].sum(-1).flatten(1))
    return torch.cat(shares)


def _key_sets(
    selected: Tensor, packing: Packing, longest: int, spec: BlossomSpec
) -> tuple[BlockKeys, NearKeys]:
    """Keys of the long-term path, of a union without near ones, and of the short-term path."""
    distances = spec.pattern.distances(longest)
    near = NearKeys(packing, distances, spec.pattern, spec.sinks, spec.causal)
    return BlockKeys(packing, selected, spec.causal, near if spec.is_union else None), near


class SparseAttention(torch.autograd.Function):
    """Softmax attention of every row over the keys that key sets gather for it.

    A bias [T, H, 1], if there is one, is added to the scaled scores of the last set's keys. The
    sets have no key in common; after them come the keys and values of each, in its layout.
    """

    @staticmethod
    def forward(ctx, q: Tensor, bias: Tensor | None, sets: KeySets, *sources: Tensor) -> Tensor:
        groups = sources[-1].shape[1 if isinstance(sets[-1], NearKeys) else 0]
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=_exact(q))
        with torch.autocast(q.device.type, enabled=False):
            for rows in _tiles(q):
                tile = _Tile.of(q, bias, sets, sources, rows, groups)
                lse[rows] = tile.scores.logsumexp(-1).flatten(1)
                weights = tile.scores.softmax(-1)
                out[rows] = (weights @ tile.v).flatten(1, 2).to(q.dtype)
        ctx.save_for_backward(q, bias, lse, *sources)
        ctx.sets, ctx.groups = sets, groups
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, bias, lse, *sources = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_bias = None if bias is None else torch.empty_like(bias)
        grads = [torch.zeros_like(x, dtype=_exact(q)) for x in sources]
        with torch.autocast(q.device.type, enabled=False):
            for rows in _tiles(q):
                tile = _Tile.of(q, bias, ctx.sets, sources, rows, ctx.groups)
                grad_out = _grouped(grad, rows, ctx.groups)
                total = lse[rows].view(len(grad_out), ctx.groups, -1, 1)
                weights = (tile.scores - total).exp()
                slopes = grad_out @ tile.v.mT
                # Not from the output, which is rounded to its type.
                slopes = weights * (slopes - (weights * slopes).sum(-1, keepdim=True))
                if bias is not None and grad_bias is not None:
                    near = slopes[..., -tile.counts[-1] :].sum(-1, keepdim=True)
                    grad_bias[rows] = near.flatten(1, 2).to(bias.dtype)
                slopes /= math.sqrt(q.shape[-1])
                grad_q[rows] = (slopes @ tile.k).flatten(1, 2).to(q.dtype)
                found = (slopes.mT @ tile.q, weights.mT @ grad_out)
                parts = zip(*(each.split(tile.counts, 2) for each in found), strict=True)
                for number, (keys, both) in enumerate(zip(ctx.sets, parts, strict=True)):
                    for into, part in zip(grads[2 * number :], both, strict=False):
                        keys.scatter(into, part, rows)
        grads = [each.to(x.dtype) for each, x in zip(grads, sources, strict=True)]
        return grad_q, grad_bias, None, *grads


@dataclass(frozen=True)
class _Tile:
    """One tile, in float32 or better: q [C, G, R, d], k and v [C, G, M, d], scores [C, G, R, M].

    counts: how many of the M keys are of each set.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    counts: list[int]

    @classmethod
    def of(
        cls,
        q: Tensor,
        bias: Tensor | None,
        sets: KeySets,
        sources: Sequence[Tensor],
        rows: slice,
        groups: int,
    ) -> _Tile:
        exact = _exact(q)
        tile_q = _grouped(q, rows, groups)
        tile_k, tile_v = (
            _joined([keys.gather(x, rows) for keys, x in zip(sets, of, strict=True)]).to(exact)
            for of in (sources[::2], sources[1::2])
        )
        masks = [keys.mask(rows).expand(-1, groups, -1) for keys in sets]
        counts = [mask.shape[-1] for mask in masks]
        scores = tile_q @ tile_k.mT / math.sqrt(q.shape[-1])
        if bias is not None:
            scores[..., -counts[-1] :] += _grouped(bias, rows, groups)
        scores.masked_fill_(~_joined(masks)[:, :, None], -math.inf)
        return cls(tile_q, tile_k, tile_v, scores, counts)


def _joined(parts: list[Tensor]) -> Tensor:
    """[C, G, M', ...] side by side, [C, G, M, ...]."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _grouped(x: Tensor, rows: slice, groups: int) -> Tensor:
    """Rows of [T, H, d] as [C, G, R, d] in float32 or better."""
    return x[rows].to(_exact(x)).unflatten(1, (groups, -1))


def _tiles(x: Tensor) -> Iterator[slice]:
    step = TILE_ROWS[x.device.type]
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))
