"""Windows of keys through a two-layer perceptron, backward where there is a gradient alone.

The perceptron takes as long as all else of the attention to short histories, and twice as long
backward. Choosing gives its keys no gradient: only the histories that the selector was taught from
have one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from blossomrec.attention.compress import MLPCompression


def pooled_windows(compression: MLPCompression, k: Tensor, rows: Tensor) -> Tensor:
    """Block keys [N, G, d] of windows of rotated keys.

    Args:
        k: [T, G, d].
        rows: int64 [N, window], packed rows of the events in each window; T before the start of a
            history, where keys count as zero.
    """
    inner, outer = compression.inner, compression.outer
    return _PooledWindows.apply(k, compression.places, inner.weight, inner.bias, outer.weight, rows)


class _PooledWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, places, inner, bias, outer, rows):
        windows = _windows(k, rows)
        # The vectors of the places are the same in every window: they join the bias.
        hidden = torch.addmm(bias + inner @ places.flatten(), windows, inner.T).relu_()
        ctx.save_for_backward(windows, hidden, places, inner, outer, rows)
        ctx.events = len(k)
        return (hidden @ outer.T).view(len(rows), *k.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        windows, hidden, places, inner, outer, rows = ctx.saved_tensors
        groups = grad.shape[1]
        taught = grad.flatten(1).any(1).nonzero()[:, 0]
        if len(taught) < len(grad):
            rows, grad = rows[taught], grad[taught]
            windows, hidden = (
                x.unflatten(0, (-1, groups))[taught].flatten(0, 1) for x in (windows, hidden)
            )
        grad = grad.flatten(0, 1)
        grad_hidden = torch.ops.aten.threshold_backward(grad @ outer, hidden, 0)
        grad_bias = grad_hidden.sum(0)
        grad_inner = (grad_hidden.T @ windows).addr_(grad_bias, places.flatten())
        grad_windows = grad_hidden @ inner
        grad_k = grad.new_zeros(ctx.events + 1, groups, places.shape[1])
        events = grad_windows.view(len(rows), groups, *places.shape).transpose(1, 2)
        grad_k.index_add_(0, rows.flatten(), events.flatten(0, 1))
        grad_places = (grad_bias @ inner).view(places.shape)
        return grad_k[:-1], grad_places, grad_inner, grad_bias, grad.T @ hidden, None


def _windows(k: Tensor, rows: Tensor) -> Tensor:
    """The keys of each window and key/value head, [N * G, window * d]."""
    events = pad(k, (0, 0, 0, 0, 0, 1)).index_select(0, rows.flatten())
    return events.unflatten(0, rows.shape).transpose(1, 2).reshape(-1, rows.shape[1] * k.shape[2])
