"""Batches of one shape, for a training step that is captured once and replayed on all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from blossomrec.attention.api import refusal
from blossomrec.attention.spec import Heads
from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.errors import ConfigError
from blossomrec.models.full import packed_kernel_takes
from blossomrec.models.transformer import TransformerModel, blossom_spec, build_attention
from blossomrec.registry import BACKBONES, LOSSES

# Room for batches with more histories than the first epoch has in any; one that needs more still
# is trained on as it is.
SPARE_SHARE, SPARE = 0.25, 8


class Shape(NamedTuple):
    """Events and histories of every batch, and the longest history; see :meth:`Batch.pad`.

    ``targets``: how many of the events are predicted from, some without a target among them.
    """

    tokens: int
    histories: int
    max_length: int
    targets: int

    @staticmethod
    def of(batches: TrainingBatches) -> Shape:
        """Large enough for the batches of the first epoch, and a little more."""
        events, histories = batches.sizes(0)
        longest = batches.longest
        tokens = max(min(batches.tokens_per_batch, batches.num_events), longest)
        needed = int((histories + -(-(tokens - events) // longest)).max())
        histories = needed + int(SPARE_SHARE * needed) + SPARE
        return Shape(tokens, histories, longest, batches.most_targets(tokens, histories))


def graph_shape(config: RunConfig, batches: TrainingBatches, device: torch.device) -> Shape | None:
    """The shape of batches for a graph, None where there is to be none.

    Raises:
        ConfigError: a graph is asked for that cannot be.
    """
    wanted = config.training.graph
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return None
    reason = _obstacle(config, device)
    if reason and wanted == "on":
        raise ConfigError(f"training.graph is 'on', but {reason}")
    return None if reason else Shape.of(batches)


def _obstacle(config: RunConfig, device: torch.device) -> str:
    """Why a step cannot be captured, as the end of a sentence; empty where it can."""
    model, training = config.model, config.training
    backbone = BACKBONES.get(model.backbone)
    if not backbone.captured:
        return f"model.backbone is {model.backbone!r}, which takes no batches of one shape"
    if not LOSSES.get(training.loss).captured:
        return f"training.loss is {training.loss!r}, which is computed partly on the host"
    if not issubclass(backbone, TransformerModel):
        return ""
    model = replace(model, **backbone.fixed)
    exact = training.precision == "32-true"
    return waiting_attention(model, exact=exact) if device.type == "cuda" else ""


def waiting_attention(model: ModelConfig, *, exact: bool) -> str:
    """Why the attention of a model would wait for a GPU, as the end of a sentence; empty if not.

    Args:
        exact: whether it computes in float32, not in bfloat16.
    """
    heads = Heads(model.heads, model.num_kv_heads, model.hidden_size // model.heads)
    dtype = torch.float32 if exact else torch.bfloat16
    if model.attention == "full":
        q = torch.empty(1, heads.queries, heads.size, dtype=dtype, device="meta")
        return "" if packed_kernel_takes(q) else "there is no kernel for this dense attention"
    if model.attention != "blossom":
        with torch.device("meta"):
            layer = build_attention(model, causal=BACKBONES.get(model.backbone).causal)
        captured = getattr(layer, "captured", False)
        return (
            "" if captured else f"model.attention is {model.attention!r}, which waits for lengths"
        )
    if model.attention_impl in ("reference", "torch"):
        return f"model.attention_impl is {model.attention_impl!r}, which waits for lengths"
    spec = blossom_spec(model, causal=BACKBONES.get(model.backbone).causal)
    refused = refusal(spec, heads, dtype, "cuda", "triton")
    # Explicitly asked for, the kernels say themselves what they do not take.
    return refused if model.attention_impl == "auto" else ""
