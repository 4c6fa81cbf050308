"""HSTU: pointwise attention with a bias for distance and time, gated by the event itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blossomrec.attention import AttentionOutput
from blossomrec.attention.buckets import Buckets
from blossomrec.attention.state import KeepsStates, Layout, PagedLayer, Step, eager
from blossomrec.attention.state.pages import rows_at
from blossomrec.config import ModelConfig
from blossomrec.models.event_inputs import GAP_BUCKETS, gap_buckets
from blossomrec.models.fused.embedding import embedding
from blossomrec.models.sasrec import SASRec

# Scores of all heads that are held at a time.
HELD = 1 << 24
# A time in pages is two numbers that float32 holds exactly.
PART = 1 << 16


class HSTUAttention(nn.Module, KeepsStates):
    """A hierarchical sequential transduction unit (Zhai et al., ICML 2024, arXiv 2402.17152).

    An event has U, V, Q, K = SiLU(x W). It sees others by SiLU(q k / sqrt(d) + bias), which is no
    share of a whole, and gives norm(A V) * U, projected. The bias of a head is learned for the
    distance and, where it sees times, for the time between two events, both in buckets that double
    in two. The sum is divided by the number of events seen, which the norm behind it takes out.

    It is dense within a history, and plain PyTorch everywhere: histories are padded in groups of
    similar length, and scores are computed anew in the backward pass, so that memory is linear.

    Args:
        hidden_size: D, a multiple of ``num_heads``.
        num_heads: H.
        causal: whether an event sees only itself and what came before.
        times: whether the time between two events counts.

    Attributes:
        rotates: False: in place of angles to rotate by it is told times, int64 [T].
    """

    rotates = False

    def __init__(
        self, *, hidden_size: int, num_heads: int, causal: bool = True, times: bool = False
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is no multiple of num_heads {num_heads}")
        self.num_heads, self.head_dim, self.causal = num_heads, hidden_size // num_heads, causal
        self.input = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False)
        # Events before the own one, then those behind it.
        sides = 1 if causal else 2
        self.position_bias = nn.Embedding(sides * GAP_BUCKETS, num_heads)
        self.time_bias = nn.Embedding(GAP_BUCKETS, num_heads) if times else None
        for bias in (self.position_bias, self.time_bias):
            if bias is not None:
                nn.init.normal_(bias.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        max_length: int,
        distil_rows: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend within each history.

        Args:
            x, cu_seqlens, max_length, distil_rows: as of :class:`FullAttention`.
            rotary: int64 [T], times of the events; None for a layer that sees none.
        """
        gate, q, k, v = self._parts(x)
        buckets = Buckets.of(cu_seqlens, len(x), max_length)
        padded = [buckets.pad(each) for each in (q, k, v)]
        times = [None] * len(buckets.shapes)
        if self.time_bias is not None:
            assert rotary is not None
            times = buckets.pad(rotary)
        out = [self._attend(*each) for each in zip(*padded, times, buckets.lengths, strict=True)]
        return AttentionOutput(self._finished(buckets.unpad(out), gate))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U [T, D], and queries, keys and values [T, H, d]."""
        gate, *heads = F.silu(self.input(x)).chunk(4, -1)
        v, q, k = (each.unflatten(-1, (self.num_heads, -1)) for each in heads)
        return gate, q, k, v

    def _finished(self, out: Tensor, gate: Tensor) -> Tensor:
        return self.output(self.norm(out.flatten(1)).to(gate.dtype) * gate)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, times: Tensor | None, lengths: Tensor
    ) -> Tensor:
        """Padded attention, a bounded number of scores at a time: [n, L, H, d]."""
        histories, longest, heads, _ = q.shape
        rows = max(1, HELD // (histories * longest * heads))
        outputs = []
        for start in range(0, longest, rows):
            # Of later events causal attention sees none.
            end = min(start + rows, longest)
            stop = end if self.causal else longest
            given = q[:, start:end], k[:, :stop], v[:, :stop], times, lengths, start
            kept = torch.is_grad_enabled() and rows < longest
            out = (
                checkpoint(self._tile, *given, use_reentrant=False) if kept else self._tile(*given)
            )
            assert isinstance(out, Tensor)
            outputs.append(out)
        return torch.cat(outputs, 1)

    def _tile(
        self, q: Tensor, k: Tensor, v: Tensor, times: Tensor | None, lengths: Tensor, start: int
    ) -> Tensor:
        """Events from ``start`` on, q [n, t, H, d], over events from the first, k [n, L, H, d]."""
        own = torch.arange(start, start + q.shape[1], device=q.device)
        other = torch.arange(k.shape[1], device=q.device)
        distance = own[:, None] - other  # [t, L]
        bias = self._of_distances(start, len(own), len(other))
        if self.time_bias is not None:
            assert times is not None
            passed = _passed(times[:, own], times[:, : len(other)])
            bias = bias + embedding(gap_buckets(passed), self.time_bias.weight).permute(0, 3, 1, 2)
        scores = torch.einsum("nthd,nshd->nhts", q, k) / math.sqrt(self.head_dim) + bias
        seen, count = distance >= 0, own[:, None] + 1
        if not self.causal:
            seen = (other < lengths[:, None])[:, None, None]
            count = lengths[:, None, None]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = F.silu(scores).masked_fill(~seen, 0.0) / count[..., None, :, :]
        return torch.einsum("nhts,nshd->nthd", weights.to(v.dtype), v)

    def _of_distances(self, start: int, rows: int, columns: int) -> Tensor:
        """The bias of events from ``start`` on for others from the first on, [H, rows, columns]."""
        # From row to row the same distances move on by one: each is looked up once.
        last = start + rows - 1
        distance = torch.arange(last, start - columns, -1, device=self.input.weight.device)
        behind = GAP_BUCKETS * (distance < 0) * (not self.causal)
        bias = embedding(gap_buckets(distance.abs()) + behind, self.position_bias.weight)
        return bias.unfold(0, columns, 1).flip(0).transpose(0, 1)

    @property
    def layout(self) -> Layout:
        """Of the states of this attention: keys and values and, beside them, the time of an event.

        Raises:
            ValueError: the attention is bidirectional, so that a new event changes all old ones.
        """
        if not self.causal:
            raise ValueError("causal is False: only causal attention can be extended")
        weight, size = self.input.weight, self.head_dim + (self.time_bias is not None)
        return Layout(1, 0, self.num_heads, size, weight.dtype, weight.device)

    @torch.no_grad()
    def extend_paged(
        self, x: Tensor, layer: PagedLayer, step: Step, rotary: Tensor | None = None
    ) -> AttentionOutput:
        """Attend from new events of many users; the cost of an event grows with the history."""
        gate, q, k, v = self._parts(x)
        if self.time_bias is not None:
            assert rotary is not None
            parts = (rotary.div(PART, rounding_mode="floor"), rotary % PART)
            high, low = (each[:, None, None].expand(-1, self.num_heads, 1) for each in parts)
            k, v = torch.cat((k, high.to(k)), -1), torch.cat((v, low.to(v)), -1)
        eager.append(k, v, layer, step)
        users = zip(q.split(np.diff(step.bounds).tolist()), step.held, strict=True)
        out = [self._attend_held(queries, rows_at(layer.pages, held)) for queries, held in users]
        return AttentionOutput(self._finished(torch.cat([q[:0], *out]), gate))

    def _attend_held(self, q: Tensor, kept: Tensor) -> Tensor:
        """The last t events of a user, [t, H, d], over all held, [L, H, 1, 2 * size]."""
        k, v = kept[:, :, 0].split(kept.shape[-1] // 2, -1)
        times, size = None, self.head_dim
        if self.time_bias is not None:
            times = (k[:, 0, size].double() * PART + v[:, 0, size].double()).long()[None]
        k, v, start = k[None, ..., :size], v[None, ..., :size], len(kept) - len(q)
        lengths = torch.tensor([len(kept)], device=q.device)
        rows = max(1, HELD // (len(kept) * self.num_heads))
        tiles = [
            self._tile(each[None], k, v, times, lengths, start + number * rows)[0]
            for number, each in enumerate(q.split(rows))
        ]
        return torch.cat(tiles)


def _passed(own: Tensor, others: Tensor) -> Tensor:
    """Seconds between events, int64 [n, t, L] of [n, t] and [n, L]; -1 where one is not known."""
    known = (own >= 0)[:, :, None] & (others >= 0)[:, None]
    return torch.where(known, (own[:, :, None] - others[:, None]).abs(), -1)


def build_hstu(config: ModelConfig, *, causal: bool) -> HSTUAttention:
    """HSTU as a configuration defines it; the time counts where gaps of time are seen."""
    return HSTUAttention(
        hidden_size=config.hidden_size,
        num_heads=config.heads,
        causal=causal,
        times=config.time_gap == "on",
    )


class HSTU(SASRec):
    """Recommendation by hierarchical sequential transduction units (Zhai et al., ICML 2024).

    A stack of :class:`HSTUAttention`, each with a norm before it and a residual connection, and
    nothing between them. Options of other attentions, of norms and of the feed-forward have no
    effect.

    Args:
        config: the architecture.
        num_items: size of the catalogue.
    """

    captured = False
    fixed: ClassVar[Mapping[str, Any]] = {
        "attention": "hstu",
        "norm": "pre",
        "feed_forward": "none",
    }
