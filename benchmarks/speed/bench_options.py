"""What a measurement is asked for, and the shape of what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from blossomrec.attention.api import IMPLEMENTATIONS
from blossomrec.attention.backends.cpu.library import missing
from blossomrec.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Ends the name of an implementation whose paths are fused by a union.
UNION = "-union"
# Implementations that know nothing else; their checks are in the type that is measured.
ONLY_16_BITS = ("cuda", f"cuda{UNION}")


class Layout(NamedTuple):
    """Query heads, key/value heads, size of a head."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def hidden_size(self) -> int:
        return self.heads * self.head_dim


PUBLISHED = Layout(8, 2, 16)
BLOCK_SIZE = 16
# That of models by default, whose paths are fused by a union.
DEFAULT = Layout(8, 8, 16)
WIDE = Layout(4, 2, 64)
# The fastest layout of dense attention for the hidden size of the published one.
FASTEST_DENSE = Layout(2, 2, 64)


@dataclass(frozen=True)
class BenchOptions:
    """What all benches are asked for.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of the inputs, or of autocast around float32 weights.
        lengths: events of a history.
        tokens: most events of all histories together.
        impls: names of implementations and peers to measure, all that there are when empty.
        log: prepared log, for real lengths of histories or for real batches.
        steps: training steps to time, an epoch when None.
        users: how many users get an event at the same time.
    """

    device: str
    dtype: torch.dtype
    lengths: tuple[int, ...]
    tokens: int
    impls: tuple[str, ...] = ()
    log: Path | None = None
    steps: int | None = None
    users: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name, values in (
            ("lengths", self.lengths),
            ("tokens", (self.tokens,)),
            ("steps", () if self.steps is None else (self.steps,)),
            ("users", self.users),
        ):
            for value in values:
                if value < 1:
                    raise ConfigError(f"{name} is {value}: it must be at least 1")

    @property
    def half(self) -> bool:
        """Whether the type has 16 bits, which kernels for dense attention on a GPU need."""
        return self.dtype.itemsize == 2

    @property
    def blossom(self) -> tuple[str, ...]:
        """Implementations of Blossom attention that are measured on the device."""
        if self.device == "cuda":
            return ("cuda", "triton") if self.half else ("triton",)
        layout = PUBLISHED
        absent = missing(layout.head_dim, layout.heads // layout.kv_heads, BLOCK_SIZE)
        return ("torch",) if absent or self.dtype != torch.float32 else ("torch", "cpu")

    def wants(self, impl: str) -> bool:
        """Whether this implementation or peer is to be measured."""
        return not self.impls or impl in self.impls


def is_blossom(impl: str) -> bool:
    """Whether a name is that of Blossom attention, however it fuses its paths, not of a peer."""
    return impl.removesuffix(UNION) in IMPLEMENTATIONS
