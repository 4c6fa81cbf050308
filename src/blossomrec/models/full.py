"""Dense attention over packed histories: what Blossom attention is compared with."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput
from blossomrec.attention.buckets import Buckets
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import rotate, rotate_by
from blossomrec.attention.state import KeepsStates, Layout, PagedLayer, Step, eager
from blossomrec.attention.state.pages import rows_at
from blossomrec.config import ModelConfig

# New events attended together: bounds the mask, a row of the history for each.
TILE_ROWS = 64


class PackedHeads(nn.Module):
    """Projections to heads and back, as those of Blossom attention: grouped, without biases.

    Args:
        hidden_size: D, a multiple of ``num_heads``.
        num_heads: H query heads.
        num_kv_heads: G key/value heads, dividing H.
        rotary_share: share of each head's dimensions that rotary embedding rotates.
        causal: whether an event sees only itself and what came before.

    Raises:
        ValueError: the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        rotary_share: float = 0.5,
        causal: bool = True,
    ):
        super().__init__()
        if hidden_size % num_heads or num_heads % num_kv_heads or hidden_size // num_heads % 2:
            raise ValueError(
                f"hidden_size {hidden_size}, num_heads {num_heads}, num_kv_heads {num_kv_heads}: "
                "each must be a multiple of the next, with an even hidden_size / num_heads"
            )
        self.num_heads, self.num_kv_heads, self.causal = num_heads, num_kv_heads, causal
        self.head_dim, self.rotary_share = hidden_size // num_heads, rotary_share
        self.query = nn.Linear(hidden_size, num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x [T, D] queries [T, H, d], keys [T, G, d] and values [T, G, d], not rotated."""
        three = (self.query(x), self.key(x), self.value(x))
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)) for each in three)
        return q, k, v

    def rotated(self, heads: Tensor, place: Tensor, rotary: Tensor | None = None) -> Tensor:
        """Heads [T, n, d] rotated by the angles given, or else by their positions, int64 [T]."""
        if rotary is not None:
            return rotate_by(heads, rotary)
        return rotate(heads, place, self.rotary_share)


class FullAttention(PackedHeads, KeepsStates):
    """Multi-head attention of every event to every event of its history (or every earlier one).

    Grouped queries and rotary positions are those of Blossom attention, so that exchanging the two
    changes nothing else. Every kernel used needs memory linear in the length.

    Args:
        hidden_size, num_heads, num_kv_heads, rotary_share, causal: see :class:`PackedHeads`.

    Attributes:
        window: most events that one sees, itself included; None for all.
    """

    window: int | None = None

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
            x: [T, D], the events of all histories one after another.
            cu_seqlens: int32 [B+1], where each history starts.
            max_length: length of the longest history.
            distil_rows: accepted as by Blossom attention; there is no selector here.

        Returns:
            Its ``hidden`` is [T, D]; the rest is None.
        """
        q, k, v = self.heads_of(x)
        place = positions(cu_seqlens, len(x))
        q, k = (self.rotated(each, place, rotary) for each in (q, k))
        out = self.attend(q, k, v, cu_seqlens, max_length)
        return AttentionOutput(self.output(out.flatten(1)))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_length: int
    ) -> Tensor:
        """The operation, [T, H, d], of rotated heads; for a subclass to change."""
        attend = packed_attention if _has_packed_kernel(q) else bucketed_attention
        return attend(q, k, v, cu_seqlens, max_length, self.causal)

    @property
    def layout(self) -> Layout:
        """Of the states of this attention: no blocks, so that any event can leave.

        Raises:
            ValueError: the attention is bidirectional, so that a new event changes all old ones.
        """
        if not self.causal:
            raise ValueError("causal is False: only causal attention can be extended")
        weight = self.key.weight
        return Layout(1, 0, self.num_kv_heads, self.head_dim, weight.dtype, weight.device)

    @torch.no_grad()
    def extend_paged(
        self, x: Tensor, layer: PagedLayer, step: Step, rotary: Tensor | None = None
    ) -> AttentionOutput:
        """Attend from new events of many users, as ``BlossomAttention.extend_paged``.

        The cost of an event grows with the history.
        """
        q, k, v = (
            each(x).view(len(x), each.out_features // self.head_dim, self.head_dim)
            for each in (self.query, self.key, self.value)
        )
        q, k = eager.rotated(q, k, step, self.rotary_share, rotary)
        eager.append(k, v, layer, step)
        users = zip(q.split(np.diff(step.bounds).tolist()), step.held, strict=True)
        out = [
            _attend_all(queries, rows_at(layer.pages, self._seen(held, len(queries))), self.window)
            for queries, held in users
        ]
        return AttentionOutput(self.output(torch.cat([q[:0], *out]).flatten(1)))

    def _seen(self, held: slice | Tensor, count: int) -> slice | Tensor:
        """Of the pages held those of events that the last ``count`` of them see."""
        if self.window is None:
            return held
        most = self.window - 1 + count
        if isinstance(held, slice):
            return slice(max(held.start, held.stop - most), held.stop)
        return held[-most:]

    @torch.no_grad()
    def prefill(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        layer: PagedLayer,
        step: Step,
        rotary: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend within whole histories and keep them, as ``BlossomAttention.prefill``."""
        place, longest = positions(cu_seqlens, len(x)), int(step.columns.max(initial=0)) + 1
        q, k, v = self.heads_of(x)
        q, k = (self.rotated(each, place, rotary) for each in (q, k))
        layer.write(k, v, v, step)
        out = self.attend(q, k, v, cu_seqlens, longest)
        return AttentionOutput(self.output(out.flatten(1)))


def build_full(config: ModelConfig, *, causal: bool) -> FullAttention:
    """Dense attention as a configuration defines it."""
    return FullAttention(**sizes_of(config), causal=causal)


def sizes_of(config: ModelConfig) -> dict[str, Any]:
    """The arguments of :class:`PackedHeads` that a configuration stands for."""
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.heads,
        "num_kv_heads": config.num_kv_heads,
        "rotary_share": config.rotary_share,
    }


def _attend_all(q: Tensor, kept: Tensor, window: int | None = None) -> Tensor:
    """The last t events of a user, [t, H, d], over all held, [L, G, 1, 2d], or a window of them."""
    heads, size = q.shape[1:]
    k, v = kept[:, :, 0].to(q.dtype).transpose(0, 1).split(size, -1)  # [G, L, d]
    outputs = []
    for number, rows in enumerate(q.split(TILE_ROWS)):
        # The heads of a group stand as queries under each other: its keys are then read once.
        folded = rows.view(len(rows), len(k), -1, size).transpose(0, 1).flatten(1, 2)
        mask = None
        if len(q) > 1:
            event = torch.arange(len(kept), device=q.device)
            own = event[len(kept) - len(q) + number * TILE_ROWS :][: len(rows)]
            seen = event <= own[:, None]
            if window is not None:
                seen &= event > own[:, None] - window
            mask = seen.repeat_interleave(heads // len(k), dim=0)
        out = F.scaled_dot_product_attention(folded[None], k[None], v[None], mask)[0]
        outputs.append(out.unflatten(1, (len(rows), -1)).transpose(0, 1).flatten(1, 2))
    return torch.cat(outputs)


def _has_packed_kernel(q: Tensor) -> bool:
    return q.is_cuda and packed_kernel_takes(q)


def packed_kernel_takes(q: Tensor) -> bool:
    """Whether, on a GPU, there is a kernel for packed queries like these, [T, H, d]."""
    fits = q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0
    return fits and q.shape[-1] <= 256 and bool(_packed_kernel_options())


@cache
def _packed_kernel_options() -> frozenset[str]:
    """Parameters of ``varlen_attn``, which differ between releases; none where it is missing."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_length: int, causal: bool
) -> Tensor:
    """Attention by PyTorch's kernel for packed sequences, on a GPU in float16 or bfloat16.

    Args:
        q: [T, H, d].
        k: [T, G, d].
        v: [T, G, d].
        cu_seqlens: int32 [B+1].
        max_length: length of the longest history.
        causal: whether an event sees only itself and what came before.

    Returns:
        [T, H, d].
    """
    from torch.nn.attention.varlen import varlen_attn

    options = _packed_kernel_options()
    given: dict[str, Any] = {}
    if causal:
        given = {"window_size": (-1, 0)} if "window_size" in options else {"is_causal": True}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in options:
            given["enable_gqa"] = True
        else:
            k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_length, max_length, **given)
    return cast(Tensor, out)


def bucketed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_length: int, causal: bool
) -> Tensor:
    """Attention by ``scaled_dot_product_attention``, on any device and in any type.

    Histories of similar length are padded at their end to the longest of them and attended
    together. Arguments and result are those of :func:`packed_attention`.
    """
    buckets = Buckets.of(cu_seqlens, len(q), max_length)
    outputs = [
        _dense_attention(*each, causal=causal)
        for each in zip(
            buckets.pad(q), buckets.pad(k), buckets.pad(v), buckets.lengths, strict=True
        )
    ]
    return buckets.unpad(outputs)


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, causal: bool) -> Tensor:
    """Padded attention: q [n, L, H, d], k and v [n, L, G, d], lengths [n] -> [n, L, H, d]."""
    mask = None
    if not causal:
        # A broadcast row of L; under causality padding at the end is out of sight anyway.
        mask = (torch.arange(q.shape[1], device=q.device) < lengths[:, None])[:, None, None]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda:
        # Not every GPU kernel takes grouped heads, and the one that is left keeps all scores.
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        grouped = False
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)
