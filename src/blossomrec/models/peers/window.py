"""Dense attention to the last events alone: what the recent past is worth by itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.attention.memo import per_batch
from blossomrec.attention.packing import Packing
from blossomrec.config import ModelConfig
from blossomrec.models.full import FullAttention, sizes_of
from blossomrec.models.peers.linrec import Chunks

# Events of a block at least: smaller ones are more work for whoever launches it than for the rest.
SMALLEST_BLOCK = 32


class WindowAttention(FullAttention):
    """Attention of every event to the last ``window`` events, itself included.

    In both directions it sees as many on either side. Time and memory are linear in a history, and
    of a kept one no more than twice the window stays.

    Args:
        window: at least 1.
        given: see :class:`PackedHeads`.

    Attributes:
        captured: whether it can be part of a CUDA graph: it never waits for the device.
    """

    captured = True

    def __init__(self, *, window: int, **given: Any):
        super().__init__(**given)
        self.window: int = window

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_length: int
    ) -> Tensor:
        size = max(self.window, SMALLEST_BLOCK)
        packing = Packing.of(cu_seqlens, len(q), size)
        # A block and its neighbours hold all that its events see.
        sides = (-1, 0) if self.causal else (-1, 0, 1)
        keys, values = (
            torch.cat([each.roll(-side, 1) for side in sides], 2)
            for each in (packing.pad(k), packing.pad(v))
        )  # [G, blocks, sides * size, d]
        queries = packing.pad(q).unflatten(0, (k.shape[1], -1))  # [G, H / G, blocks, size, d]
        seen = _seen(cu_seqlens, len(q), size, self.window, self.causal)
        out = F.scaled_dot_product_attention(
            queries.flatten(1, 2),
            keys.repeat(1, queries.shape[1], 1, 1),
            values.repeat(1, queries.shape[1], 1, 1),
            seen.repeat(queries.shape[1], 1, 1),
        )
        out = out.unflatten(1, queries.shape[1:3]).permute(2, 3, 0, 1, 4).flatten(0, 1)
        rows = packing.first_padded * size + packing.position
        return out.index_select(0, rows).flatten(1, 2)


@per_batch
def _seen(cu_seqlens: Tensor, total: int, size: int, window: int, causal: bool) -> Tensor:
    """Which events of a block and its neighbours each event of the block sees, bool."""
    chunks = Chunks.of(cu_seqlens, total, size)
    inside = torch.arange(size, device=cu_seqlens.device)
    sides = torch.arange(-1, 1 if causal else 2, device=cu_seqlens.device)
    others = (sides[:, None] * size + inside).flatten()
    distance = inside[:, None] - others
    near = (distance < window) & (distance >= 0 if causal else distance > -window)
    position = chunks.number[:, None] * size + others
    length = cu_seqlens.long().diff()[chunks.history]
    # What fills up a block sees itself, so that no softmax is over nothing.
    there = (position >= 0) & (position < length[:, None])
    return (near & there[:, None]) | (distance == 0)


def build_window(config: ModelConfig, *, causal: bool) -> WindowAttention:
    """Attention to the last ``config.window`` events."""
    return WindowAttention(window=config.window, **sizes_of(config), causal=causal)
