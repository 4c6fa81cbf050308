"""Ways to choose the blocks of a long history, to be compared on the recall task.

The shipped attention and options of it, and ways that were measured and not taken. Those are
written to be short, not fast, and know only batches of equally long, causal histories.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blossomrec.attention import BlossomAttention
from blossomrec.attention.compress import MLPCompression
from blossomrec.config import ModelConfig
from blossomrec.errors import ConfigError
from blossomrec.models.building import build_model
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.transformer import TransformerLayer, build_blossom


class DetachedLesson(BlossomAttention):
    """Distillation reaches the compression alone; queries and keys do not feel it."""

    def distil(self, q, k, block_keys, cu_seqlens, backend, **given) -> Tensor | None:
        block_keys = backend.parts.block_keys(self.compress, k.detach(), cu_seqlens)
        return super().distil(q.detach(), k, block_keys, cu_seqlens, backend, **given)


class StraightThrough(BlossomAttention):
    """The selected blocks' probabilities join the long-term softmax in the backward pass alone.

    A bias of log p - stop_gradient(log p) on the keys of a selected block leaves the output as it
    is and gives the importance a gradient of the recommendation loss.
    """

    def attend(self, q, k, v, block_keys, gates, cu_seqlens, backend) -> tuple[Tensor, Tensor]:
        out, selected = super().attend(q, k, v, block_keys, gates, cu_seqlens, backend)
        importance = _importance(q, block_keys, cu_seqlens, self.spec.block_size)  # [B, G, L, J]
        log_shares = importance.log_softmax(-1).transpose(1, 2).flatten(0, 1)  # [T, G, J]
        log_share = log_shares.gather(-1, selected.clamp(min=0).long())
        # Where nothing is selected, nothing is eligible, and the softmax over nothing is no number.
        log_share = log_share.masked_fill(selected < 0, 0.0)
        bias = log_share - log_share.detach()
        q, k, v = (each.detach().float() for each in (q, k, v))
        long = _long_term(q, k, v, selected, cu_seqlens, self.spec.block_size, bias)
        return out + (gates[..., :1] * (long - long.detach())).to(out.dtype), selected

    def distil(self, *others, **given) -> Tensor | None:
        return None


class CompressedBranch(BlossomAttention):
    """A third gated output attends to the blocks themselves, as in Native Sparse Attention
    (arXiv 2502.11089): through it the recommendation loss reaches the compression."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.compress_values = MLPCompression(
            head_dim=self.heads.size,
            block_size=self.spec.block_size,
            window=2 * self.spec.block_size,
        )
        self.branch_gate = nn.Linear(options["hidden_size"], self.heads.queries)
        nn.init.zeros_(self.branch_gate.weight)

    def forward(self, x, cu_seqlens, **options):
        self._x = x
        return super().forward(x, cu_seqlens, **options)

    def attend(self, q, k, v, block_keys, gates, cu_seqlens, backend) -> tuple[Tensor, Tensor]:
        out, selected = super().attend(q, k, v, block_keys, gates, cu_seqlens, backend)
        count, groups = len(cu_seqlens) - 1, k.shape[1]
        heads = q.float().view(count, -1, groups, q.shape[1] // groups, q.shape[-1])
        keys = _by_history(block_keys, count, heads.shape[1] // self.spec.block_size)
        values = self.compress_values(v, cu_seqlens)
        values = _by_history(values, count, keys.shape[1])
        scores = torch.einsum("blgrd,bjgd->bgrlj", heads, keys) / math.sqrt(q.shape[-1])
        earlier = _earlier_blocks(heads.shape[1], keys.shape[1], self.spec.block_size, q.device)
        weights = scores.masked_fill(~earlier, -math.inf).softmax(-1).nan_to_num(0.0)
        branch = torch.einsum("bgrlj,bjgd->blgrd", weights, values).reshape(q.shape)
        gate = self.branch_gate(self._x).sigmoid()[..., None]
        return out + (gate * branch).to(out.dtype), selected

    def distil(self, *others, **given) -> Tensor | None:
        return None


class DenseDistilled(BlossomAttention):
    """In training the long-term path of distilled events sees everything, so that the
    recommendation loss reaches the keys that their selection misses."""

    def forward(self, x, cu_seqlens, *, distil_rows=None, **options):
        self._dense_rows = distil_rows if self.training else None
        return super().forward(x, cu_seqlens, distil_rows=distil_rows, **options)

    def attend(self, q, k, v, block_keys, gates, cu_seqlens, backend) -> tuple[Tensor, Tensor]:
        rows = self._dense_rows
        if rows is None:
            return super().attend(q, k, v, block_keys, gates, cu_seqlens, backend)
        # Of the path that sees everything instead, nothing is to come from the selected blocks.
        kept = torch.ones_like(gates).index_fill(0, rows, 0)
        kept[..., 1] = 1
        out, selected = super().attend(q, k, v, block_keys, gates * kept, cu_seqlens, backend)
        dense = _attend_to_all(q, k, v, rows, len(cu_seqlens) - 1)
        weighted = gates.index_select(0, rows)[..., :1] * dense
        return out.index_add(0, rows, weighted.to(out.dtype)), selected


def _attend_to_all(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, count: int) -> Tensor:
    """Attention of ``rows``, as many of each of ``count`` histories, to all up to themselves.

    Returns:
        float32 [len(rows), H, d].
    """
    groups, size = k.shape[1:]
    keys, values = (each.float().unflatten(0, (count, -1)) for each in (k, v))  # [B, L, G, d]
    queries = q.index_select(0, rows).float().view(count, -1, groups, q.shape[1] // groups, size)
    scores = torch.einsum("bmgrd,blgd->bmgrl", queries, keys) / math.sqrt(size)
    length = keys.shape[1]
    later = torch.arange(length, device=q.device) > (rows % length).view(count, -1, 1)
    weights = scores.masked_fill(later[:, :, None, None], -math.inf).softmax(-1)
    return torch.einsum("bmgrl,blgd->bmgrd", weights, values).reshape(-1, *q.shape[1:])


def _long_term(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    block_size: int,
    bias: Tensor,
) -> Tensor:
    """Attention to the selected blocks and the own one: float32 [T, H, d].

    ``bias``, [T, G, n], is added to the scores of all keys of a selected block.
    """
    total, groups, size = k.shape
    length = total // (len(cu_seqlens) - 1)
    row = torch.arange(total, device=q.device)
    mine = row[:, None, None] % length // block_size
    blocks = torch.cat((selected, mine.expand(-1, groups, -1)), -1)
    inside = torch.arange(block_size, device=q.device)
    first = (row // length * length)[:, None, None] + blocks.clamp(min=0) * block_size
    event = first[..., None] + inside  # [T, G, blocks, S]
    seen = (blocks >= 0)[..., None] & (event <= row[:, None, None, None])
    head = torch.arange(groups, device=q.device)[:, None, None]
    taken = event.clamp(max=total - 1) * groups + head
    keys, values = (nn.functional.embedding(taken, each.flatten(0, 1)) for each in (k, v))
    scores = torch.einsum("tgrd,tgjsd->tgrjs", q.unflatten(1, (groups, -1)), keys)
    padded = nn.functional.pad(bias, (0, 1))
    scores = scores / math.sqrt(size) + padded[:, :, None, :, None]
    weights = scores.flatten(3).masked_fill(~seen.flatten(2)[:, :, None], -math.inf).softmax(-1)
    return torch.einsum("tgrm,tgmd->tgrd", weights, values.flatten(2, 3)).flatten(1, 2)


def _earlier_blocks(length: int, blocks: int, block_size: int, device: torch.device) -> Tensor:
    """Which blocks lie before each event's own, bool [L, J]."""
    own = torch.arange(length, device=device) // block_size
    return torch.arange(blocks, device=device) < own[:, None]


def _by_history(block_keys: Tensor, count: int, blocks: int) -> Tensor:
    """Rows of the complete blocks, [J, G, d], as float32 [B, blocks, G, d]."""
    return block_keys[: count * blocks].float().unflatten(0, (count, blocks))


def _importance(q: Tensor, block_keys: Tensor, cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Importance of each block for each event, -inf where not eligible, float32 [B, G, L, J]."""
    count, groups = len(cu_seqlens) - 1, block_keys.shape[1]
    mean_q = q.float().view(count, -1, groups, q.shape[1] // groups, q.shape[-1]).mean(3)
    keys = _by_history(block_keys, count, mean_q.shape[1] // block_size)
    scores = torch.einsum("blgd,bjgd->bglj", mean_q, keys) / math.sqrt(q.shape[-1])
    earlier = _earlier_blocks(mean_q.shape[1], keys.shape[1], block_size, q.device)
    return scores.masked_fill(~earlier, -math.inf)


@dataclass(frozen=True)
class Candidate:
    """A way to attend.

    Attributes:
        options: of the model.
        distilled: whether the selector's loss is part of what is minimised.
        attention: what replaces the shipped attention, if anything does.
        graph: whether a training step can be a CUDA graph.
    """

    options: dict[str, Any] = field(default_factory=dict)
    distilled: bool = True
    attention: type[BlossomAttention] | None = None
    graph: bool = True


# The form whose selector is studied; a candidate or a job may change it.
PUBLISHED: dict[str, Any] = {"fusion": "gated", "kv_heads": 2}
CANDIDATES = {
    "full": Candidate({"attention": "full"}),
    "short": Candidate({"paths": "short"}),
    "mlp": Candidate(),
    "mean": Candidate({"compress": "mean"}),
    "mlp-detached": Candidate(attention=DetachedLesson),
    "mlp-frozen": Candidate(distilled=False),
    "mean-untaught": Candidate({"compress": "mean"}, distilled=False),
    "mlp-gated": Candidate({"fusion": "gated"}, attention=StraightThrough, graph=False),
    "mlp-branch": Candidate(attention=CompressedBranch, graph=False),
    "mlp-dense": Candidate({"fusion": "gated"}, attention=DenseDistilled),
    "mean-dense": Candidate({"compress": "mean", "fusion": "gated"}, attention=DenseDistilled),
}


def build_candidate(name: str, config: ModelConfig, num_items: int) -> SequenceModel:
    """The model with the attention of a candidate; ConfigError where it is not known."""
    if name not in CANDIDATES:
        raise ConfigError(f"candidate {name!r} is not known: choose from {', '.join(CANDIDATES)}")
    candidate = CANDIDATES[name]
    config = dataclasses.replace(config, **candidate.options)
    model = build_model(config, num_items)
    if candidate.attention is not None:
        for layer in model.modules():
            if isinstance(layer, TransformerLayer):
                layer.attention = build_blossom(config, causal=True, layer=candidate.attention)
    if not candidate.distilled:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".compress." not in name)
    return model
