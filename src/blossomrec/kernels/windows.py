# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Windows of packed keys that end where a complete block ends, copied side by side in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def key_windows(k: Tensor, starts: Tensor, numbers: Tensor, block_size: int, window: int) -> Tensor:
    """The ``window`` keys that end with each complete block, for each key/value head.

    Args:
        k: [T, G, d].
        starts: int64 [J], packed row of each block's first key.
        numbers: int64 [J], number of each block in its history; ``NO_BLOCK`` where there is none.
        block_size: keys in a block.
        window: keys in a window, a multiple of ``block_size``.

    Returns:
        [J, G, window * d]; zero before the start of a history and where there is no block.
    """
    return _KeyWindows.apply(k.contiguous(), starts, numbers, block_size, window)


class _KeyWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, starts, numbers, block_size, window):
        ctx.save_for_backward(starts, numbers)
        ctx.shape, ctx.form = k.shape, (block_size, window)
        return copy_windows(k, starts, numbers, block_size, window, None, k.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_k = windows_gradient(grad, *ctx.saved_tensors, ctx.shape, *ctx.form, grad.dtype)
        return grad_k, None, None, None, None


def copy_windows(
    k: Tensor,
    starts: Tensor,
    numbers: Tensor,
    block_size: int,
    window: int,
    places: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`key_windows`, without a gradient; ``places`` [window, d] are added if given."""
    groups, size = k.shape[1:]
    windows = k.new_empty(len(starts), groups, window * size, dtype=dtype)
    if len(starts):
        form = _form(k.shape, block_size, window, window)
        windows_kernel[(len(starts),)](k, starts, numbers, places, windows, **form)
    return windows


def windows_gradient(
    grad: Tensor,
    starts: Tensor,
    numbers: Tensor,
    shape: torch.Size,
    block_size: int,
    window: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the keys [T, G, d], given that of their windows, [J, G, window * d]."""
    grad_k = grad.new_zeros(shape, dtype=dtype)
    if len(starts):
        form = _form(shape, block_size, window, block_size)
        windows_backward_kernel[(len(starts),)](
            grad.contiguous(), starts, numbers, grad_k, len(starts), **form
        )
    return grad_k


def _form(shape: torch.Size, block_size: int, window: int, places: int) -> dict[str, int]:
    _, groups, size = shape
    return {
        "S": block_size,
        "WINDOW": window,
        "G": groups,
        "D": size,
        "PLACES": triton.next_power_of_2(places),
        "COLUMNS": triton.next_power_of_2(groups * size),
    }
