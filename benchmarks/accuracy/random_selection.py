"""Blossom attention that selects blocks at random, to see what the selector gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy.paper_tables import AT_RANDOM
from blossomrec.attention.backends import Backend
from blossomrec.attention.layer import BlossomAttention
from blossomrec.config import ModelConfig
from blossomrec.models import ATTENTIONS
from blossomrec.models.transformer import build_blossom

# So many periods of a sine lie between two keys that its value tells nothing of them.
PERIODS = 1e4


class RandomSelection(BlossomAttention):
    """Blossom attention whose blocks are scored by noise in place of their keys.

    The noise is a function of the block, so that an evaluation can be repeated; what is seen of the
    selected blocks are their true keys and values.
    """

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_keys: Tensor,
        gates: Tensor,
        cu_seqlens: Tensor,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        noise = torch.sin(PERIODS * block_keys.detach().float()).to(block_keys.dtype)
        return super().attend(q, k, v, noise, gates, cu_seqlens, backend)

    def distil(self, *inputs: Any, **given: Any) -> None:
        """There is nothing to learn."""


def build_random_selection(config: ModelConfig, *, causal: bool) -> BlossomAttention:
    """The attention as a configuration defines it."""
    return build_blossom(config, causal=causal, layer=RandomSelection)


def register() -> None:
    """Make the attention known by ``AT_RANDOM`` in this process."""
    ATTENTIONS.register(AT_RANDOM)(build_random_selection)
