"""Batches of one shape, for a training step that is captured once and replayed on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from blossomrec.attention.api import refusal
from blossomrec.attention.spec import Heads
from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.windows import divided
from blossomrec.errors import ConfigError
from blossomrec.models.full import packed_kernel_takes
from blossomrec.models.shard import without_numbers
from blossomrec.models.transformer import TransformerModel, blossom_spec, build_attention
from blossomrec.ranks import ALONE, Ranks
from blossomrec.registry import BACKBONES, LOSSES

# Room for batches with more histories than the first epoch has in any; one that needs more still
# is trained on as it is.
SPARE_SHARE, SPARE = 0.25, 8
# Batches of the first epoch by which the size of a rank's part is told, and how many events more
# there is room for, as a share of these.
LOOKED_AT, SPARE_EVENTS = 64, 1 / 64


class Shape(NamedTuple):
    """Events and histories of every batch, and the longest history; see :meth:`Batch.pad`.

    ``targets``: how many of the events are predicted from, some without a target among them.
    """

    tokens: int
    histories: int
    max_length: int
    targets: int

    @staticmethod
    def of(batches: TrainingBatches, size: int = 1) -> Shape:
        """Large enough for the batches of the first epoch, and a little more.

        Args:
            size: how many ranks have a part of each batch, for the shape of these parts.
        """
        longest, targets = batches.longest, batches.most_targets
        tokens = max(min(batches.tokens_per_batch, batches.num_events), longest)
        if size == 1:
            return Shape.around(*batches.sizes(0), tokens, longest, targets)
        steps = np.unique(np.linspace(0, batches.steps(0) - 1, LOOKED_AT).astype(np.int64))
        events, histories = part_sizes((batches.lengths(0, each) for each in steps), size)
        needed = math.ceil(int(events.max()) * (1 + SPARE_EVENTS))
        # No part has more than an equal one and a history.
        tokens = max(min(needed, tokens, -(-tokens // size) + longest), longest)
        return Shape.around(events, histories, tokens, longest, targets)

    @staticmethod
    def around(
        events: np.ndarray,
        histories: np.ndarray,
        tokens: int,
        longest: int,
        targets: Callable[[int, int], int],
    ) -> Shape:
        """Room for histories by how many there are in some batches, both int64 [steps].

        Args:
            targets: gives how many targets so many events and histories have at most.
        """
        needed = int((histories + -(-(tokens - events) // longest).clip(min=0)).max())
        room = needed + int(SPARE_SHARE * needed) + SPARE
        return Shape(tokens, room, longest, targets(tokens, room))


def part_sizes(batches: Iterable[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Events and histories of the parts that ``size`` ranks have of batches, both int64 [parts].

    Args:
        batches: events of each history of each batch.
    """
    parts = [lengths[part] for lengths in batches for part in divided(lengths, size)]
    return np.array([int(part.sum()) for part in parts]), np.array([len(part) for part in parts])


def graph_shape(
    config: RunConfig, batches: TrainingBatches, device: torch.device, ranks: Ranks = ALONE
) -> Shape | None:
    """The shape of batches, or of a rank's parts, for a graph; None where there is to be none.

    Raises:
        ConfigError: a graph is asked for that cannot be.
    """
    wanted = config.training.graph
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return None
    reason = _obstacle(config, device)
    if reason and wanted == "on":
        raise ConfigError(f"training.graph is 'on', but {reason}")
    return None if reason else Shape.of(batches, ranks.size)


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
        with without_numbers():
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
