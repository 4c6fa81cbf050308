# pyright: reportCallIssue=false
"""Windows of keys through a two-layer perceptron, outer(relu(inner(window + places)))."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.activation import bias_activation, bias_activation_backward
from blossomrec.attention.backends.gpu.products import compute_dtype, product
from blossomrec.attention.backends.gpu.windows import copy_windows, windows_gradient


def pooled_windows(
    k: Tensor,
    places: Tensor,
    inner: nn.Linear,
    outer: nn.Linear,
    where: tuple[Tensor, Tensor],
    block_size: int,
) -> Tensor:
    """One key for each block, from the window of keys that ends with it.

    Args:
        k: [T, G, d].
        places: [window, d], added to the keys of each window.
        inner: window * d -> F, with a bias.
        outer: F -> d, without.
        where: starts and numbers of the blocks, see ``windows.key_windows``.
        block_size: keys in a block.

    Returns:
        [J, G, d] in the type of autocast, or of ``k`` without.
    """
    weights = (places, inner.weight, inner.bias, outer.weight)
    return _PooledWindows.apply(k.contiguous(), *weights, *where, block_size)


class _PooledWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, places, inner, bias, outer, starts, numbers, block_size):
        dtype, form = compute_dtype(k), (block_size, len(places))
        with torch.autocast(k.device.type, enabled=False):
            inner, outer = inner.to(dtype), outer.to(dtype)
            windows = copy_windows(k, starts, numbers, *form, places, dtype).flatten(0, 1)
            pooled = bias_activation(windows @ inner.T, bias, relu=True) @ outer.T
        # Windows overlap and are as wide as all their keys: they are made again, not kept.
        ctx.save_for_backward(k, places, inner, bias, outer, starts, numbers)
        ctx.form = form
        return pooled.unflatten(0, (-1, k.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        k, places, inner, bias, outer, starts, numbers = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            windows = copy_windows(k, starts, numbers, *ctx.form, places, inner.dtype)
            windows = windows.flatten(0, 1)
            grad = grad.flatten(0, 1).to(outer.dtype)
            hidden, grad_hidden = windows @ inner.T, grad @ outer
            grad_bias = bias_activation_backward(hidden, bias, grad_hidden, relu=True)
            grad_windows = grad_hidden @ inner
            grad_inner = product(grad_hidden.T, windows)
            grad_outer = product(grad.T, hidden)
        grad_places = grad_windows.sum(0, dtype=grad_inner.dtype).view(ctx.form[1], -1)
        grad_k = windows_gradient(grad_windows, starts, numbers, k.shape, *ctx.form, k.dtype)
        return grad_k, grad_places, grad_inner, grad_bias, grad_outer, None, None, None
