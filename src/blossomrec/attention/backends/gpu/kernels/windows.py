# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Windows of packed keys, copied side by side, and their gradients summed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def windows_kernel(
    k,
    starts,
    numbers,
    places,
    windows,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program copies one window; zero before the start of the history and where no block is.

    places: [WINDOW, D] to add, or None.
    """
    block = tl.program_id(0)
    start, number = tl.load(starts + block), tl.load(numbers + block)
    # Places count from the first key of the block: those before belong to earlier blocks.
    window = tl.arange(0, PLACES)[:, None]
    place = window - (WINDOW - S)
    column = tl.arange(0, COLUMNS)[None]
    inside = (window < WINDOW) & (column < G * D)
    held = inside & (place >= -number * S)
    key = tl.load(k + (start + place) * (G * D) + column, mask=held, other=0.0)
    if places is not None:
        added = tl.load(places + window * D + column % D, mask=inside, other=0.0)
        key = key.to(tl.float32) + added.to(tl.float32)
    target = (block.to(tl.int64) * G + column // D) * (WINDOW * D) + window * D + column % D
    tl.store(windows + target, key.to(windows.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def windows_backward_kernel(
    grad,
    starts,
    numbers,
    grad_k,
    blocks,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program adds up, for the keys of one block, what all windows over it bring."""
    block = tl.program_id(0)
    start, number = tl.load(starts + block), tl.load(numbers + block)
    place = tl.arange(0, PLACES)[:, None]
    column = tl.arange(0, COLUMNS)[None]
    inside = (place < S) & (column < G * D)
    if number < 0:
        return
    total = tl.zeros([PLACES, COLUMNS], tl.float32)
    for ahead in tl.static_range(WINDOW // S):
        # The blocks of a history follow each other; in the next one they start from 0 again.
        other = tl.minimum(block + ahead, blocks - 1)
        if tl.load(numbers + other) == number + ahead:
            source = (other.to(tl.int64) * G + column // D) * (WINDOW * D)
            source += (place + (WINDOW - S - ahead * S)) * D + column % D
            total += tl.load(grad + source, mask=inside, other=0.0).to(tl.float32)
    target = grad_k + (start + place) * (G * D) + column
    tl.store(target, total.to(grad_k.dtype.element_ty), mask=inside)
