# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Dropout from a seed on the device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def drop(values, seed, row, DROPPED: tl.constexpr, KEPT: tl.constexpr):
    """Drop from ``values`` [ROWS, BLOCK], and scale what is kept.

    The choice for a row and column depends on the seed alone (Philox 4x32, seven rounds: Salmon et
    al., SC 2011), and BLOCK must be a multiple of eight.
    """
    if DROPPED == 0:
        return values
    else:
        BLOCK: tl.constexpr = values.shape[1]
        place = row[:, None] * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None]
        a, b, c, d = tl.randint4x(tl.load(seed), place, n_rounds=7)
        words = tl.join(tl.join(a, b), tl.join(c, d)).to(tl.uint32, bitcast=True)
        levels = tl.join(words & 0xFFFF, words >> 16)
        levels = tl.reshape(levels, values.shape)
        return tl.where(levels.to(tl.int32) >= DROPPED, values * KEPT, 0.0)
