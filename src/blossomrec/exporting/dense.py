"""Attention over padded histories, written with masks: what an exported graph computes.

Other engines have no operator for a selection of blocks. Here it is a mask, made of the same block
scores, and every key is scored: the same numbers at a cost that is quadratic in the length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from blossomrec.attention import BlossomAttention, BlossomSpec
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.models.full import FullAttention


@dataclass(frozen=True)
class Padded:
    """B histories of at most L events, filled up at their end.

    Attributes:
        lengths: int64 [B].
        position: int64 [L], 0 for the oldest event.
        angles: [B or 1, L, 2, pairs], cosine and sine that queries and keys are rotated by.
    """

    lengths: Tensor
    position: Tensor
    angles: Tensor

    @cached_property
    def there(self) -> Tensor:
        """Which keys are events, bool [B, 1, 1, L]."""
        return (self.position < self.lengths[:, None])[:, None, None]

    @cached_property
    def distance(self) -> Tensor:
        """From each event back to each key, int64 [L, L]."""
        return self.position[:, None] - self.position

    def rotated(self, x: Tensor) -> Tensor:
        """Heads [B, L, n, d] as ``rotate_by`` rotates them."""
        half = self.angles.shape[-1]
        cos, sin = self.angles[:, :, :, None].unbind(2)
        first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class DenseAttention(nn.Module):
    """Projections, masked attention and the output of a layer; subclasses say what is seen.

    Args:
        layer: the trained attention, whose weights are used.
        heads: H query heads.
        groups: G key/value heads.
    """

    def __init__(self, layer: BlossomAttention | FullAttention, heads: int, groups: int):
        super().__init__()
        self.query, self.key, self.value = layer.query, layer.key, layer.value
        self.output = layer.output
        self.heads, self.groups = heads, groups
        self.size = layer.query.out_features // heads

    def forward(self, x: Tensor, padded: Padded) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        q, k, v = (
            each(x).unflatten(-1, (-1, self.size)) for each in (self.query, self.key, self.value)
        )
        q, k = padded.rotated(q), padded.rotated(k)
        # [B, G, H / G, L, d], and with one head for the H / G that share it.
        q = q.unflatten(2, (self.groups, -1)).permute(0, 2, 3, 1, 4)
        k, v = (each.transpose(1, 2)[:, :, None] for each in (k, v))
        out = self.attend(x, q, k, v, padded)
        return self.output(out.permute(0, 3, 1, 2, 4).flatten(2))

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, padded: Padded) -> Tensor:
        """[B, G, H / G, L, d] of rotated heads."""
        raise NotImplementedError


class DenseFull(DenseAttention):
    """Attention to all events, or to a window of them."""

    def __init__(self, layer: FullAttention):
        super().__init__(layer, layer.num_heads, layer.num_kv_heads)
        self.causal, self.window = layer.causal, layer.window

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, padded: Padded) -> Tensor:
        mask = padded.there
        if self.causal:
            mask = mask & (padded.distance >= 0)
        if self.window is not None:
            mask = mask & (padded.distance.abs() < self.window)
        return masked_attention(q, k, v, mask[:, :, None])


class DenseBlossom(DenseAttention):
    """Blossom attention: the selection and the short-term path as masks.

    Args:
        layer: the trained attention.
        limit: most places of a history.
    """

    near: Tensor

    def __init__(self, layer: BlossomAttention, limit: int):
        super().__init__(layer, layer.heads.queries, layer.heads.keys)
        self.spec, self.compress, self.gate = layer.spec, layer.compress, layer.gate
        near = layer.spec.pattern.is_visible(torch.arange(limit))
        self.register_buffer("near", near, persistent=False)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, padded: Padded) -> Tensor:
        short = self._short_term_mask(padded)[:, :, None]
        if self.spec.paths == "short":
            return masked_attention(q, k, v, short)
        keys = block_keys(k[:, :, 0], self.compress)
        chosen = select_blocks(q.mean(2), keys, padded, self.spec)
        long = self._long_term_mask(chosen, padded)[:, :, None]
        if self.spec.paths == "long":
            return masked_attention(q, k, v, long)
        if self.spec.is_union:
            bias = None if self.gate is None else self._by_head(self.gate(x)) * short
            return masked_attention(q, k, v, long | short, bias)
        first, second = self._gates(x)
        return first * masked_attention(q, k, v, long) + second * masked_attention(q, k, v, short)

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the two paths, [B, G, H / G, L, 1]."""
        assert self.gate is not None
        given = self.gate(x)
        if self.spec.gate == "convex":
            return self._by_head(given.sigmoid()), self._by_head((-given).sigmoid())
        first, second = given.sigmoid().unflatten(-1, (self.heads, 2)).unbind(-1)
        return self._by_head(first), self._by_head(second)

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, L, H] to [B, G, H / G, L, 1]."""
        return x.unflatten(-1, (self.groups, -1)).permute(0, 2, 3, 1)[..., None]

    def _short_term_mask(self, padded: Padded) -> Tensor:
        """bool [B, 1, L, L]."""
        distance = padded.distance
        mask = self.near[distance.abs()]
        if self.spec.causal:
            mask = (mask | (padded.position < self.spec.sinks)) & (distance >= 0)
            return mask & padded.there
        ends = (padded.lengths - self.spec.sinks)[:, None, None, None]
        return (mask | (padded.position >= ends)) & padded.there

    def _long_term_mask(self, chosen: Tensor, padded: Padded) -> Tensor:
        """Of the chosen blocks, bool [B, G, L, J], the keys, bool [B, G, L, L]."""
        block = padded.position // self.spec.block_size
        own = block[:, None] == block
        if self.spec.causal:
            own = own & (padded.distance >= 0)
        return (chosen.index_select(-1, block) | own) & padded.there


def block_keys(k: Tensor, compress: MeanCompression | MLPCompression) -> Tensor:
    """Keys of the blocks, [B, G, J, d] with J = L // block_size + 2, of keys [B, G, L, d].

    Of a block that is not complete the key means nothing; it is never chosen.
    """
    size, length = compress.block_size, k.shape[2]
    # Never 1: a graph that is made for several blocks would not take one.
    count = length // size + 2
    rows = torch.arange(count * size, device=k.device).clamp(max=length - 1)
    blocks = k.index_select(2, rows).unflatten(2, (count, size))
    number = torch.arange(count, device=k.device)
    windows = []
    for back in reversed(range(compress.window // size)):
        # The block ``back`` before; what would lie before the history counts as zero.
        before = blocks.index_select(2, (number - back).clamp(min=0))
        windows.append(before * (number >= back)[:, None, None])
    pooled = torch.cat(windows, 3).transpose(1, 2).flatten(0, 1)  # [B * J, G, window, d]
    return compress.pool(pooled).unflatten(0, (k.shape[0], count)).transpose(1, 2)


def select_blocks(queries: Tensor, keys: Tensor, padded: Padded, spec: BlossomSpec) -> Tensor:
    """Which blocks each event selects, bool [B, G, L, J].

    Args:
        queries: [B, G, L, d], means of the groups.
        keys: [B, G, J, d].
    """
    number = torch.arange(keys.shape[2], device=keys.device)
    own = (padded.position // spec.block_size)[:, None]
    if spec.causal:
        eligible = (number < own)[None, None]
    else:
        complete = number < (padded.lengths // spec.block_size)[:, None]
        eligible = ((number != own) & complete[:, None])[:, None]
    importance = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    importance = importance.masked_fill(~eligible, -math.inf)
    # Among equal scores PyTorch on a processor, and TopK of ONNX, have the lower block first.
    order = importance.sort(dim=-1, descending=True).indices
    rank = order.argsort(-1)
    chosen = eligible & (rank < spec.top_n)
    if spec.share < 1:
        shares = importance.softmax(-1).gather(-1, order)
        before = shares.cumsum(-1) - shares
        chosen = chosen & (before < spec.share).gather(-1, rank)
    return chosen


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention, scale 1/sqrt(d): [B, G, R, L, d].

    Args:
        q: [B, G, R, L, d].
        k, v: [B, G, 1, L, d].
        mask: bool, as the scores [B, G, R, L, L] or broadcast.
        bias: is added to the scaled scores.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    # Not -inf: what fills a history up may see nothing, and must not become NaN.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1) @ v
