# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Windows of packed keys that end where a complete block ends, copied side by side in one pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.kernels.windows import (
    windows_backward_kernel,
    windows_kernel,
)
from blossomrec.attention.backends.gpu.products import next_power_of_2


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
        "PLACES": next_power_of_2(places),
        "COLUMNS": next_power_of_2(groups * size),
    }
