"""The two paths as constants of the kernels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache

from blossomrec.attention.pattern import NearPattern

# Longer than any history, of which kernels count the events of all heads in 32 bits.
LONGEST = 1 << 30


@cache
def powers_of(base: float) -> tuple[int, ...]:
    """Powers of ``base``, rounded, each once and rising, that are distances in some history."""
    return tuple(NearPattern(window=1, base=base).distances(LONGEST)[1:])


@dataclass(frozen=True)
class Pattern:
    """The two paths as constants of the kernels.

    Attributes:
        near: neighbouring blocks, on one side, that hold every visible distance up to
            ``near * block_size``.
        first_far, far: number of the first power beyond among ``powers_of`` the base, its exponent
            where that is two, and how many of them the longest possible history has.
        sink_blocks: blocks that can hold sinks.
    """

    block_size: int
    window: int
    sinks: int
    causal: bool
    near: int
    first_far: int
    far: int
    sink_blocks: int

    @staticmethod
    def of(
        block_size: int, window: int, sinks: int, causal: bool, total: int, base: float = 2.0
    ) -> Pattern:
        near, powers = max(1, -(-(window - 1) // block_size)), powers_of(base)
        first_far = bisect_right(powers, near * block_size)
        # The last sinks of a history need not begin where a block does.
        sink_blocks = -(-sinks // block_size) + (sinks > 0 and not causal)
        return Pattern(
            block_size=block_size,
            window=window,
            sinks=sinks,
            causal=causal,
            near=near,
            first_far=first_far,
            far=max(0, bisect_left(powers, total) - first_far),
            sink_blocks=sink_blocks,
        )

    def query_constants(self, keys: int) -> dict[str, int | bool]:
        """Constants of the kernels of the queries, which take ``keys`` far keys at a step."""
        sides = 1 if self.causal else 2
        return {
            "KEYS": keys,
            "S": self.block_size,
            "WINDOW": self.window,
            "SINKS": self.sinks,
            "CAUSAL": self.causal,
            "NEAR": self.near,
            "NEAR_STEPS": sides * self.near + 1 + self.sink_blocks,
            "FIRST_FAR": self.first_far,
            "FAR_STEPS": -(-self.far // keys),
        }

    def key_constants(self) -> dict[str, int | bool]:
        """Constants of the kernel of the keys."""
        return {
            "S": self.block_size,
            "WINDOW": self.window,
            "SINKS": self.sinks,
            "CAUSAL": self.causal,
            "NEAR": self.near,
            "FIRST_FAR": self.first_far,
            "SINK_BLOCKS": self.sink_blocks,
        }
