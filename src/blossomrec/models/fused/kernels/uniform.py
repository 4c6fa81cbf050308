# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Numbers by a counter, as ``losses.sampling`` defines them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _shifted(bits, BY: tl.constexpr):
    """Shifted to the right as if there were no sign."""
    return (bits >> BY) & ((1 << (64 - BY)) - 1)


@triton.jit
def _mixed(bits, FIRST: tl.constexpr, SECOND: tl.constexpr):
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)


@triton.jit(do_not_specialize=["count"])
def uniform_kernel(
    seed,
    stream,
    out,
    count,
    STEP: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Numbers in [0, 1), float64 [count], of a seed and a stream, int64 each."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = _mixed(tl.load(seed), FIRST, SECOND) + tl.load(stream) * STEP
    bits = _mixed(bits, FIRST, SECOND) + (place + 1).to(tl.int64) * STEP
    bits = _shifted(_mixed(bits, FIRST, SECOND), 11)
    tl.store(out + place, bits.to(tl.float64) * 2.0**-53, mask=place < count)
