"""The models whose encoder and training are measured: one published size, several attentions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.speed.bench_options import (
    DEFAULT,
    FASTEST_DENSE,
    PUBLISHED,
    UNION,
    WIDE,
    BenchOptions,
    Layout,
)
from benchmarks.speed.operations import causal_mask, fusion_of, naive_attention
from blossomrec.config import ModelConfig
from blossomrec.models.full import FullAttention

# Dense attention as it comes with PyTorch: of packed histories on a GPU, else of padded ones.
FULL = {"cpu": "dense", "cuda": "flash"}
# Multi-head attention of the released SASRec: as many key/value heads as query heads.
NAIVE_LAYOUT = Layout(8, 8, 16)
DROPOUT = 0.2
# Attentions of linear cost beside which the encoder is measured.
LINEAR = ("linrec", "mamba")


@dataclass(frozen=True)
class Architecture:
    """An attention inside the encoder: its name, how block keys are made, its heads."""

    impl: str
    compress: str
    layout: Layout

    def config(self, length: int, *, reference: bool = False) -> ModelConfig:
        """SASRec of the published size with this attention, or with what defines it."""
        blossom = self.compress != "none"
        impl = self.impl.removesuffix(UNION) if blossom else "auto"
        other = self.impl if self.impl in LINEAR else "full"
        choices: dict[str, Any] = {
            "attention": "blossom" if blossom else other,
            "compress": self.compress if blossom else "mlp",
            "attention_impl": "reference" if reference else impl,
            "fusion": fusion_of(self.impl),
        }
        return ModelConfig(
            max_len=max(2, length),
            hidden_size=self.layout.hidden_size,
            heads=self.layout.heads,
            kv_heads=self.layout.kv_heads,
            dropout=DROPOUT,
            **choices,
        )


def architectures(options: BenchOptions) -> list[Architecture]:
    """Blossom attention as published, with both ways to make block keys, and as models have it by
    default; dense attention with the same heads, and with those that are fastest.
    """
    published = [
        Architecture(impl, compress, PUBLISHED)
        for impl in options.blossom
        for compress in ("mean", "mlp")
    ]
    default = [Architecture(impl + UNION, "mlp", DEFAULT) for impl in options.blossom]
    layouts = (PUBLISHED, DEFAULT, FASTEST_DENSE)
    full = [Architecture(FULL[options.device], "none", layout) for layout in layouts]
    return [*published, *default, *full]


def wide_architectures(options: BenchOptions) -> list[Architecture]:
    """Blossom and dense attention with wide heads, which are measured on GPUs."""
    if options.device == "cpu":
        return []
    blossom = [Architecture(impl, "mlp", WIDE) for impl in options.blossom]
    return [*blossom, Architecture(FULL[options.device], "none", WIDE)]


def graph_choices(architecture: Architecture, options: BenchOptions) -> tuple[bool, ...]:
    """Whether it is measured as it is (False) and as a CUDA graph (True)."""
    # Dense attention in float32 has no packed kernel, and waits for lengths.
    waits = architecture.impl == FULL["cuda"] and not options.half
    return (False, True) if options.device == "cuda" and not waits else (False,)


class NaiveAttention(FullAttention):
    """Dense attention with all scores in memory, over histories of one length, as in RecBole."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_length: int
    ) -> Tensor:
        q, k, v = (each.unflatten(0, (-1, max_length)).transpose(1, 2) for each in (q, k, v))
        mask = causal_mask(max_length, str(q.device), q.dtype)
        out = naive_attention(q, k, v, mask, DROPOUT if self.training else 0.0)
        return out.transpose(1, 2).flatten(0, 1)


def naive_layers(layers: torch.nn.ModuleList) -> torch.nn.ModuleList:
    """The layers, with scores in memory in place of what dense attention they had."""
    for layer in cast("Iterable[Any]", layers):
        old = layer.attention
        naive = NaiveAttention(
            hidden_size=old.query.in_features,
            num_heads=old.num_heads,
            num_kv_heads=old.num_kv_heads,
            rotary_share=old.rotary_share,
            causal=old.causal,
        )
        naive.load_state_dict(old.state_dict())
        layer.attention = naive
    return layers
