"""The way back through a layer: from the derivatives by its output to those by its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput, BlossomAttention
from blossomrec.explanation.shares import LayerShares, PathShares
from blossomrec.models.transformer import SwiGLU, TransformerLayer

# Events whose attention is looked at together: bounds what is gathered at a time.
TILE_ROWS = 128


@dataclass(frozen=True)
class Flow:
    """Derivative of the score, as a sum, by the states of some events: rows [r], rising, [r, D]."""

    rows: Tensor
    gradient: Tensor

    def back_through_norm(self, norm: nn.LayerNorm, x: Tensor) -> Flow:
        """By the input x, [T, D], of a layer norm by whose output it is now."""
        return Flow(self.rows, _backward(lambda x: _norm(norm, x), self.gradient, x[self.rows])[0])


class LayerInputs(NamedTuple):
    """What a layer is given besides its input; see ``TransformerLayer``."""

    cu_seqlens: Tensor
    rotary: Tensor | None
    request: Tensor | None


def back_through_layer(
    layer: TransformerLayer, x: Tensor, attended: AttentionOutput, given: LayerInputs, flow: Flow
) -> tuple[Flow, LayerShares]:
    """From the output of a layer to its input x, [T, D]."""
    attention = layer.attention
    assert isinstance(attention, BlossomAttention)
    request = None if given.request is None else given.request[flow.rows]
    by_input, by_attended = _backward(
        lambda x, a: _after_attention(layer, x, a, request),
        flow.gradient,
        x[flow.rows],
        attended.hidden[flow.rows],
    )
    shown = layer.attention_norm(x) if layer.pre_norm else x
    back = _AttentionBack(attention, shown, attended, given)
    for start in range(0, len(flow.rows), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        back.add(flow.rows[tile], by_attended[tile])
    through = Flow(*back.flow())
    if layer.pre_norm:
        through = through.back_through_norm(layer.attention_norm, x)
    total = torch.zeros_like(x)
    total[flow.rows] = by_input
    # An event sees itself, so that the rows reached hold those that they were reached from.
    total[through.rows] += through.gradient
    return Flow(through.rows, total[through.rows]), back.shares()


class _SeenKeys(NamedTuple):
    """Events that one path looks at, and whether each is there, [C, G, M]; scores [C, G, R, M]."""

    places: Tensor
    seen: Tensor
    scores: Tensor


class _AttentionBack:
    """The way back through one attention, tile by tile of the events that it starts from.

    Args:
        x: [T, D], input of the attention.
        attended: what the attention gave for it.
    """

    def __init__(
        self,
        attention: BlossomAttention,
        x: Tensor,
        attended: AttentionOutput,
        given: LayerInputs,
    ):
        assert attended.selected is not None and attended.gates is not None
        self._attention, self._selected, self._gates = attention, attended.selected, attended.gates
        self._q, self._k, *_ = attention.project(x, given.cu_seqlens, given.rotary)
        self._v = attention.value(x).unflatten(-1, (attention.heads.keys, -1))
        self._by_value = torch.zeros_like(self._v)
        self._reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._weights, self._passed = (x.new_zeros(2, len(x)) for _ in range(2))
        self._last_gates = self._gates[-1]

    def add(self, rows: Tensor, gradient: Tensor) -> None:
        """Go back from the attention's output at ``rows``, [C], with derivatives [C, D]."""
        groups = self._attention.heads.keys
        # The output matrix, then a head's dimensions as [C, G, R, d].
        by_out = (gradient @ self._attention.output.weight).unflatten(-1, (groups, -1, self._size))
        paths = [self._seen_by(rows, *keys) for keys in (self._far(rows), self._near(rows))]
        gates = self._gates[rows].unflatten(1, (groups, -1))
        if self._attention.spec.is_union:
            # The one softmax is the softmaxes of both paths, weighed by what it gives to either.
            far, near = (path.scores.logsumexp(-1, keepdim=True) for path in paths)
            gates = torch.cat((far, near + gates), -1).softmax(-1)
            if int(rows[-1]) == len(self._q) - 1:
                self._last_gates = gates[-1].flatten(0, 1)
        for number, path in enumerate(paths):
            self._add_path(number, rows, by_out * gates[..., number, None], path)

    def _seen_by(self, rows: Tensor, places: Tensor, seen: Tensor) -> _SeenKeys:
        groups = self._groups
        q = self._q[rows].unflatten(1, (len(groups), -1))
        scores = (q @ self._k[places, groups].mT) / math.sqrt(self._size)
        return _SeenKeys(places, seen, scores.masked_fill(~seen[:, :, None], -math.inf))

    def _add_path(self, path: int, rows: Tensor, by_out: Tensor, keys: _SeenKeys) -> None:
        places, seen, scores = keys
        groups, v = self._groups, self._v[places, self._groups]  # [C, G, M, d]
        # Of a union the long-term path may see nothing of its own.
        weights = scores.softmax(-1).nan_to_num()  # [C, G, R, M]
        by_value = weights.mT @ by_out
        self._by_value.index_put_((places, groups), by_value, accumulate=True)
        self._passed[path].index_put_((places,), (by_value * v).sum(-1), accumulate=True)
        self._reached[places[seen]] = True
        if int(rows[-1]) == len(self._q) - 1:
            mean = weights[-1].mean(1) / len(groups)
            self._weights[path].index_put_((places[-1],), mean, accumulate=True)

    def _far(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Events of the own block and of the selected ones; of a union without the near ones."""
        size = self._attention.spec.block_size
        own = (rows // size)[:, None, None].expand(-1, self._attention.heads.keys, 1)
        blocks = torch.cat((own, self._selected[rows].long()), dim=-1)
        places = (blocks[..., None] * size + torch.arange(size, device=rows.device)).flatten(2)
        places, seen = _seen(places, rows)
        spec = self._attention.spec
        if spec.is_union:
            near = spec.pattern.is_visible((rows[:, None, None] - places).clamp(min=0))
            seen = seen & ~(near | (places < spec.sinks))
        return places, seen

    def _near(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Events at the distances of the pattern, and the sinks that are not among them."""
        spec = self._attention.spec
        distances = torch.tensor(spec.pattern.distances(len(self._q)), device=rows.device)
        sink = torch.arange(spec.sinks, device=rows.device)
        again = spec.pattern.is_visible((rows[:, None] - sink).clamp(min=0))
        sinks_once = torch.where(again, -1, sink)
        places = torch.cat((rows[:, None] - distances, sinks_once), dim=-1)
        return _seen(places[:, None].expand(-1, self._attention.heads.keys, -1), rows)

    def flow(self) -> tuple[Tensor, Tensor]:
        """Rows reached, and the derivative by the input of the attention there."""
        rows = self._reached.nonzero().flatten()
        return rows, self._by_value[rows].flatten(1) @ self._attention.value.weight

    def shares(self) -> LayerShares:
        blocks, counts = self._selected[-1].unique(return_counts=True)
        numbered = zip(blocks.tolist(), counts.tolist(), strict=True)
        weights, passed = (each.float().cpu().numpy() for each in (self._weights, self._passed))
        return LayerShares(
            gates=self._last_gates.float().cpu().numpy(),
            selected={block: count for block, count in numbered if block >= 0},
            kv_heads=self._attention.heads.keys,
            long=PathShares(weights[0], passed[0]),
            short=PathShares(weights[1], passed[1]),
        )

    @property
    def _groups(self) -> Tensor:
        """Numbers of the key/value heads, [G, 1]."""
        return torch.arange(self._attention.heads.keys, device=self._v.device)[:, None]

    @property
    def _size(self) -> int:
        return self._attention.heads.size


def _seen(places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Places that exist and are not later than ``rows``; the row itself stands for the others."""
    last = rows[:, None, None]
    seen = (places >= 0) & (places <= last)
    return torch.where(seen, places, last), seen


def _backward(function, gradient: Tensor, *inputs: Tensor) -> Sequence[Tensor]:
    """Derivatives by the inputs, given those by the output of a function."""
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in inputs]
        return torch.autograd.grad(function(*leaves), leaves, gradient)


def _after_attention(
    layer: TransformerLayer, x: Tensor, attended: Tensor, request: Tensor | None
) -> Tensor:
    """What a layer does with the output of its attention, with scales and openings held."""
    # A gate is held as well.
    x = x + (layer.attention_gate(x.detach()).sigmoid() * attended if layer.gated else attended)
    if not layer.pre_norm:
        x = _norm(layer.attention_norm, x)
    if request is not None:
        # No event's: it is part of the rest.
        x = x + request
    if not layer.feeds:
        return x
    added = _feed_forward(layer, _norm(layer.feed_forward_norm, x) if layer.pre_norm else x)
    x = x + (layer.feed_forward_gate(x.detach()).sigmoid() * added if layer.gated else added)
    return x if layer.pre_norm else _norm(layer.feed_forward_norm, x)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / scale.detach() * norm.weight + norm.bias


def _feed_forward(layer: TransformerLayer, x: Tensor) -> Tensor:
    inner = layer.inner(x)
    if isinstance(layer.activation, SwiGLU):
        value, opening = inner.chunk(2, -1)
        return layer.outer(value * nn.functional.silu(opening.detach()))
    # GELU is its input times the share that it lets through.
    opening = torch.special.ndtr(inner.detach())
    return layer.outer(inner * opening)
