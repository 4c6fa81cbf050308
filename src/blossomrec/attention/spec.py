"""What a Blossom attention computes, in one object that travels from the options to the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blossomrec.attention.pattern import NearPattern

COMPRESSIONS = ("mlp", "mean")
PATHS = ("both", "long", "short")
GATES = ("independent", "convex")
FUSIONS = ("gated", "union")


@dataclass(frozen=True)
class BlossomSpec:
    """The definition of Blossom attention apart from its width (BlossomRec, arXiv 2512.13368).

    Attributes:
        block_size: events in a block, S.
        top_n: blocks selected for each event and key/value head, n.
        window: distances below it are always seen by the short-term path, w.
        share: blocks are taken, the most important first, until their share of the importance, a
            softmax over the eligible blocks, reaches it; top_n at most, all of them at 1.
        power_base: of the power law that the distances of the short-term path follow.
        sinks: how many first (causal) or last (bidirectional) events everyone sees.
        causal: an event sees no later event; otherwise both directions are seen.
        compress: "mlp" (learned) or "mean" (no parameters): how a block's keys become one key.
        compress_window: keys that one block key is made of by "mlp", a multiple of block_size.
        rotary_share: share of each head's dimensions that the position rotates; the rest compare
            contents, whatever the distance.
        paths: "both", or one alone: "long" or "short", with weight 1 and no gate.
        fusion: how both paths become one: "gated", two softmaxes whose results a gate weighs, as
            published, or "union", one softmax over the keys of either path, each once, with a
            learned bias on the scores of those that the short-term path sees.
        near_bias: whether a union has that bias; without, all its keys count alike.
        gate: "independent" weights of the two paths, as published, or "convex": they sum up to 1.

    Raises:
        ValueError: a value is out of bounds or unknown; the message names it.

    Example:
        >>> BlossomSpec(top_n=8).keys_of_block
        32
    """

    block_size: int = 16
    top_n: int = 4
    window: int = 8
    sinks: int = 0
    share: float = 1.0
    power_base: float = 2.0
    causal: bool = True
    compress: str = "mlp"
    compress_window: int = 32
    rotary_share: float = 0.5
    paths: str = "both"
    fusion: str = "gated"
    near_bias: bool = True
    gate: str = "independent"

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}: it must be above 0 and at most 1")
        if not self.power_base > 1:
            raise ValueError(f"power_base is {self.power_base}: it must be above 1")
        for name, low in (("block_size", 1), ("top_n", 1), ("window", 1), ("sinks", 0)):
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"{name} is {value}: it must be at least {low}")
        choices = {"compress": COMPRESSIONS, "paths": PATHS, "fusion": FUSIONS, "gate": GATES}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(known)}")

    @property
    def pattern(self) -> NearPattern:
        """Which distances the short-term path sees."""
        return NearPattern(self.window, self.power_base)

    @property
    def selects(self) -> bool:
        """Whether blocks are selected at all: not where the short-term path is alone."""
        return self.paths != "short"

    @property
    def learns_compression(self) -> bool:
        """Whether block keys are made by a perceptron; without a selection nothing is learned."""
        return self.selects and self.compress == "mlp"

    @property
    def keys_of_block(self) -> int:
        """Keys that one block key is made of, ending where the block ends."""
        return self.compress_window if self.learns_compression else self.block_size

    @property
    def is_gated(self) -> bool:
        """Whether how the two paths are weighed is learned: by gates, or by the union's bias."""
        return self.paths == "both" and (self.near_bias or not self.is_union)

    @property
    def is_union(self) -> bool:
        """Whether one softmax is over the keys of both paths."""
        return self.paths == "both" and self.fusion == "union"

    @property
    def gate_size(self) -> int:
        """Numbers for each event and head that the operation is given: two weights or one bias."""
        return 1 if self.is_union else 2


class Heads(NamedTuple):
    """H query heads, G key/value heads, and the d numbers of a head."""

    queries: int
    keys: int
    size: int

    @property
    def per_group(self) -> int:
        """Query heads that share a key/value head, R."""
        return self.queries // self.keys


class Inputs(NamedTuple):
    """What is attended; see :func:`blossomrec.attention.blossom_attention` for the shapes."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_keys: Tensor
    gates: Tensor
    cu_seqlens: Tensor


class Target(NamedTuple):
    """A layer that an implementation may take: definition, sizes, type of queries, device."""

    spec: BlossomSpec
    heads: Heads
    dtype: torch.dtype
    device: str
