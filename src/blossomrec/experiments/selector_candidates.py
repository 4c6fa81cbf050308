"""Ways to choose the blocks of a long history, to be compared on the recall task.

The shipped attention and options of it, and three ways that were measured and not taken. Those are
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
from blossomrec.attention.reference import long_term_mask
from blossomrec.config import ModelConfig
from blossomrec.errors import ConfigError
from blossomrec.models.sequence import SequenceModel, build_model
from blossomrec.models.transformer import TransformerLayer, blossom_options


class DetachedLesson(BlossomAttention):
    """The selector's loss teaches the compression alone; queries and keys do not feel it."""

    def _teach(self, q, k, block_keys, cu_seqlens, *others) -> Tensor | None:
        block_keys = self.compress(k.detach(), cu_seqlens)
        return super()._teach(q.detach(), k, block_keys, cu_seqlens, *others)


class StraightThrough(BlossomAttention):
    """The selected blocks' probabilities join the long-term softmax in the backward pass alone.

    A bias of log p - stop_gradient(log p) on the keys of a selected block leaves the output as it
    is and gives the importance a gradient of the recommendation loss.
    """

    def _attend(self, q, k, v, block_keys, gates, cu_seqlens) -> tuple[Tensor, Tensor]:
        out, selected = super()._attend(q, k, v, block_keys, gates, cu_seqlens)
        importance = _importance(q, block_keys, cu_seqlens, self.block_size)  # [B, G, L, J]
        log_share = importance.log_softmax(-1).nan_to_num(neginf=0.0)
        bias = (log_share - log_share.detach()).repeat_interleave(self.block_size, -1)
        count, length = len(cu_seqlens) - 1, len(q) // (len(cu_seqlens) - 1)
        bias = nn.functional.pad(bias, (0, length - bias.shape[-1]))
        seen = torch.stack(
            [long_term_mask(each, self.block_size, True) for each in selected.split(length)]
        )
        heads = q.detach().float().view(count, length, k.shape[1], -1, q.shape[-1])
        keys, values = (x.detach().float().view(count, length, *k.shape[1:]) for x in (k, v))
        scores = torch.einsum("blgrd,bsgd->bgrls", heads, keys) / math.sqrt(q.shape[-1])
        weights = (scores + bias[:, :, None]).masked_fill(~seen[:, :, None], -math.inf).softmax(-1)
        long = torch.einsum("bgrls,bsgd->blgrd", weights, values).reshape(q.shape)
        return out + (gates[..., :1] * (long - long.detach())).to(out.dtype), selected

    def _teach(self, *others) -> Tensor | None:
        return None


class CompressedBranch(BlossomAttention):
    """A third gated output attends to the blocks themselves, as in Native Sparse Attention
    (arXiv 2502.11089): through it the recommendation loss reaches the compression."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.compress_values = MLPCompression(
            head_dim=self.head_dim, block_size=self.block_size, window=2 * self.block_size
        )
        self.branch_gate = nn.Linear(options["hidden_size"], self.num_heads)
        nn.init.zeros_(self.branch_gate.weight)

    def forward(self, x, cu_seqlens, **options):
        self._x = x
        return super().forward(x, cu_seqlens, **options)

    def _attend(self, q, k, v, block_keys, gates, cu_seqlens) -> tuple[Tensor, Tensor]:
        out, selected = super()._attend(q, k, v, block_keys, gates, cu_seqlens)
        count, groups = len(cu_seqlens) - 1, k.shape[1]
        heads = q.float().view(count, -1, groups, q.shape[1] // groups, q.shape[-1])
        keys = _by_history(block_keys, count, heads.shape[1] // self.block_size)
        values = self.compress_values(v, cu_seqlens)
        values = _by_history(values, count, keys.shape[1])
        scores = torch.einsum("blgrd,bjgd->bgrlj", heads, keys) / math.sqrt(q.shape[-1])
        earlier = _earlier_blocks(heads.shape[1], keys.shape[1], self.block_size, q.device)
        weights = scores.masked_fill(~earlier, -math.inf).softmax(-1).nan_to_num(0.0)
        branch = torch.einsum("bgrlj,bjgd->blgrd", weights, values).reshape(q.shape)
        gate = self.branch_gate(self._x).sigmoid()[..., None]
        return out + (gate * branch).to(out.dtype), selected

    def _teach(self, *others) -> Tensor | None:
        return None


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
        taught: whether the selector's loss is part of what is minimised.
        attention: what replaces the shipped attention, if anything does.
        longest: events of a history up to which it can be run.
    """

    options: dict[str, Any] = field(default_factory=dict)
    taught: bool = True
    attention: type[BlossomAttention] | None = None
    longest: int = 1 << 20


CANDIDATES = {
    "full": Candidate({"attention": "full"}),
    "short": Candidate({"paths": "short"}),
    "mlp": Candidate(),
    "mean": Candidate({"compress": "mean"}),
    "mlp-detached": Candidate(attention=DetachedLesson),
    "mlp-frozen": Candidate(taught=False),
    "mean-untaught": Candidate({"compress": "mean"}, taught=False),
    "mlp-gated": Candidate(attention=StraightThrough, longest=1_024),
    "mlp-branch": Candidate(attention=CompressedBranch, longest=8_192),
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
                layer.attention = candidate.attention(**blossom_options(config, causal=True))
    if not candidate.taught:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".compress." not in name)
    return model
