"""LinRec: attention whose cost is linear in a history, by sums of products of keys and values."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.attention import AttentionOutput
from blossomrec.attention.memo import per_batch
from blossomrec.attention.packing import Packing, positions
from blossomrec.config import ModelConfig
from blossomrec.models.full import PackedHeads, sizes_of
from blossomrec.models.fused.embedding import embedding
from blossomrec.models.recurrent import Continued, RecurrentAttention, Tensors

# Events of a chunk: inside of one they meet in pairs, from chunk to chunk by their sums.
CHUNK = 64
# Added to squares of norms, so that nothing is divided by zero.
EPSILON = 1e-6


class LinRec(PackedHeads, RecurrentAttention):
    """L2-normalised linear attention (Liu et al., SIGIR 2023, arXiv 2411.01537).

    With phi = ELU, an event gives r(phi(q)) c(phi(K))^T V: r divides a query by its norm and by
    sqrt(d), c each dimension of the keys by its norm over the history and by sqrt(L). Where an
    event sees only what came before, norm, length and sum are those up to itself, so that an
    event's output is what it would be as the last of its history. Rotary positions rotate
    phi(q) and phi(k).

    What is kept of a user is, for each key/value head, the sum of k v^T and of the squares of k.

    Args:
        hidden_size, num_heads, num_kv_heads, rotary_share, causal: see :class:`PackedHeads`.

    Attributes:
        captured: whether it can be part of a CUDA graph: it never waits for the device.
    """

    captured = True

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        max_length: int,
        distil_rows: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend within each history; arguments and result as of :class:`FullAttention`."""
        q, k, v = self._features(x, positions(cu_seqlens, len(x)), rotary)
        out, _ = linear_attention(q, k, v, cu_seqlens, max_length, causal=self.causal)
        return AttentionOutput(self.output(out.to(x.dtype).flatten(1)))

    def initial(self, users: int) -> Tensors:
        if not self.causal:
            raise ValueError("causal is False: only causal attention can be extended")
        size = self.head_dim
        return (self.key.weight.new_zeros(users, self.num_kv_heads, size, size + 1),)

    def extend_recurrent(
        self, x: Tensor, given: Continued, kept: Tensors, rotary: Tensor | None = None
    ) -> tuple[Tensor, Tensors]:
        q, k, v = self._features(x, given.position, rotary)
        if given.is_one_each:
            out, sums = _one_more(q, k, v, kept[0], given.lengths)
        else:
            before = Before(kept[0], given.position)
            out, sums = linear_attention(q, k, v, given.cu_seqlens, given.max_length, before=before)
        return self.output(out.to(x.dtype).flatten(1)), (sums,)

    def _features(
        self, x: Tensor, place: Tensor, rotary: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of norm 1 / sqrt(d), keys and values, float32 or better."""
        exact = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (each.to(exact) for each in self.heads_of(x))
        q = F.elu(q)
        q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + EPSILON) / math.sqrt(self.head_dim)
        return self.rotated(q, place, rotary), self.rotated(F.elu(k), place, rotary), v


def build_linrec(config: ModelConfig, *, causal: bool) -> LinRec:
    """LinRec as a configuration defines it."""
    return LinRec(**sizes_of(config), causal=causal)


class Before(NamedTuple):
    """What came before new events.

    Attributes:
        sums: [B, G, d, d+1], of each user the sum of k v^T and, last, of the squares of k.
        position: int64 [T], of each new event in its whole history.
    """

    sums: Tensor
    position: Tensor


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    *,
    causal: bool = True,
    before: Before | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of k v^T, seen by queries, over packed histories: time and memory are linear.

    Nothing waits for the device.

    Args:
        q: [T, H, d] queries.
        k, v: [T, G, d] keys and values; G divides H.
        cu_seqlens: int32 [B+1].
        max_length: length of the longest history.
        causal: whether an event sees only itself and what came before.
        before: of causal attention, what came before the histories; None for nothing.

    Returns:
        [T, H, d], and the sums of each history, [B, G, d, d+1]; see :class:`Before`.
    """
    with torch.autocast(q.device.type, enabled=False):
        size = max(1, min(CHUNK, max_length))
        packing, chunks = Packing.of(cu_seqlens, len(q), size), Chunks.of(cu_seqlens, len(q), size)
        keys, values = packing.pad(k), packing.pad(v)  # [G, chunks, size, d]
        # Heads of a group side by side: [G, chunks, size, H / G, d].
        queries = packing.pad(q.unflatten(1, (k.shape[1], -1)).flatten(2))
        queries = queries.unflatten(-1, (-1, k.shape[2]))
        squares = keys.square().cumsum(2)
        sums = torch.cat((keys.mT @ values, squares[:, :, -1, :, None]), -1).transpose(0, 1)
        running = chunks.running(sums, -(-max_length // size))
        totals = chunks.totals(running)
        if before is not None:
            totals = totals + before.sums
        if causal:
            earlier = chunks.before(running)
            if before is not None:
                earlier = earlier + before.sums[chunks.history]
            out = _seen_before(queries, keys, values, squares, earlier.transpose(0, 1))
            count = (packing.position if before is None else before.position) + 1
        else:
            seen = chunks.of_history(totals).transpose(0, 1)
            out = _by_norms(queries, seen[:, :, None, :, -1]).flatten(2, 3) @ seen[..., :-1]
            count = packing.length
        out = _packed(out, packing)
        return out * torch.rsqrt(count.to(out.dtype))[:, None, None], totals


def _packed(out: Tensor, packing: Packing) -> Tensor:
    """Events of chunks, [G, chunks, size * H / G, d], as they were packed, [T, H, d]."""
    size = packing.block_size
    rows = out.unflatten(2, (size, -1)).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1, 2)
    return rows.index_select(0, packing.first_padded * size + packing.position)


def _seen_before(
    queries: Tensor, keys: Tensor, values: Tensor, squares: Tensor, earlier: Tensor
) -> Tensor:
    """What events see of earlier chunks and of their own up to themselves, [G, n, size * R, d]."""
    size, heads = queries.shape[2:4]
    queries = _by_norms(queries, earlier[:, :, None, :, -1] + squares).flatten(2, 3)
    later = torch.ones(size, size, dtype=torch.bool, device=keys.device).triu(1)
    scores = (queries @ keys.mT).masked_fill(later.repeat_interleave(heads, 0), 0.0)
    return scores @ values + queries @ earlier[..., :-1]


def _by_norms(queries: Tensor, squares: Tensor) -> Tensor:
    """Queries [..., R, d] over the norms of the dimensions of the keys, [..., d] squared."""
    return queries * torch.rsqrt(squares + EPSILON)[..., None, :]


def _one_more(
    q: Tensor, k: Tensor, v: Tensor, sums: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """One event of each user: what :func:`linear_attention` gives, in a few operations."""
    sums = sums + torch.cat((k[..., None] * v[:, :, None], k.square()[..., None]), -1)
    queries = _by_norms(q.unflatten(1, (k.shape[1], -1)), sums[..., -1])
    out = (queries @ sums[..., :-1]).flatten(1, 2)
    return out * torch.rsqrt((lengths + 1).to(out.dtype))[:, None, None], sums


class Chunks(NamedTuple):
    """Chunks of histories, in the order of :class:`Packing`.

    Attributes:
        history, number: int64 [N], which history each is of, and its number there; those behind the
            last one, which hold no events, follow it.
        last: int64 [B], the last chunk of each history; of one without events any.
        filled: bool [B], whether the history has events.
    """

    history: Tensor
    number: Tensor
    last: Tensor
    filled: Tensor

    @staticmethod
    @per_batch
    def of(cu_seqlens: Tensor, total: int, size: int) -> Chunks:
        lengths = cu_seqlens.long().diff()
        ends = ((lengths + size - 1) // size).cumsum(0)
        chunk = torch.arange(total // size + len(lengths), device=cu_seqlens.device)
        history = torch.searchsorted(ends, chunk, right=True).clamp(max=len(lengths) - 1)
        starts = F.pad(ends, (1, 0))[:-1]
        return Chunks(history, chunk - starts[history], (ends - 1).clamp(min=0), lengths > 0)

    def running(self, sums: Tensor, most: int) -> Tensor:
        """Sums [N, ...] of each chunk and of those before it in its history, ``most`` in one.

        In as many passes as ``most`` has doublings, so that no history's sums meet another's.
        """
        step, later = 1, self.number.view(-1, *[1] * (sums.dim() - 1))
        while step < most:
            earlier = torch.cat((torch.zeros_like(sums[:step]), sums[:-step]))
            sums = sums + torch.where(later >= step, earlier, 0.0)
            step *= 2
        return sums

    def before(self, running: Tensor) -> Tensor:
        """Of running sums [N, ...] those before each chunk."""
        earlier = torch.cat((torch.zeros_like(running[:1]), running[:-1]))
        return torch.where(self.number.view(-1, *[1] * (running.dim() - 1)) > 0, earlier, 0.0)

    def totals(self, running: Tensor) -> Tensor:
        """The sums of whole histories, [B, ...]."""
        filled = self.filled.view(-1, *[1] * (running.dim() - 1))
        return torch.where(filled, running[self.last], 0.0)

    def of_history(self, totals: Tensor) -> Tensor:
        """Of each chunk what its history has, [N, ...] of [B, ...]."""
        # Its gradient is summed in a fixed order.
        return embedding(self.history, totals.flatten(1)).unflatten(1, totals.shape[1:])
