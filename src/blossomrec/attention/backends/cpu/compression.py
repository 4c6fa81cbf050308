"""Windows of keys through a two-layer perceptron, backward where there is a gradient alone.

The perceptron takes as long as all else of the attention to short histories, and twice as long
backward. Choosing gives its keys no gradient: only the histories that the selector was taught from
have one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from blossomrec.attention.compress import MLPCompression


def pooled_windows(compression: MLPCompression, k: Tensor, windows: tuple[Tensor, ...]) -> Tensor:
    """Block keys [N, G, d] of windows of rotated keys.

    Args:
        k: [T, G, d].
        windows: int64 [n, w] each, N in all: packed rows of the last w events of a window; T before
            the start of a history, where keys count as zero, as they do before the w events.
    """
    inner, outer = compression.inner, compression.outer
    parameters = compression.places, inner.weight, inner.bias, outer.weight
    return _PooledWindows.apply(k, *parameters, *windows)


class _PooledWindows(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, k, places, inner, bias, outer, *windows):
        ctx.events, groups = len(k), k.shape[1]
        keys = [_keys(k, rows) for rows in windows]
        hidden = k.new_empty(sum(map(len, keys)), len(inner))
        # The vectors of the places are the same in every window: they join the bias.
        bias = bias + inner @ places.flatten()
        for x, to in zip(keys, hidden.split([*map(len, keys)]), strict=True):
            torch.addmm(bias, x, inner[:, -x.shape[1] :].T, out=to)
        ctx.save_for_backward(places, inner, outer, hidden.relu_(), *windows, *keys)
        return (hidden @ outer.T).unflatten(0, (-1, groups))

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        places, inner, outer, hidden, *saved = ctx.saved_tensors
        windows, keys = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        groups, size, counts = grad.shape[1], places.shape[1], [*map(len, windows)]
        grad_inner, grad_outer = torch.zeros_like(inner), torch.zeros_like(outer)
        grad_bias = inner.new_zeros(len(inner))
        grad_k = grad.new_zeros(ctx.events + 1, groups, size)
        hidden = hidden.unflatten(0, (-1, groups)).split(counts)
        for rows, x, y, slope in zip(windows, keys, hidden, grad.split(counts), strict=True):
            rows, x, y, slope = _with_gradient(rows, x.unflatten(0, (-1, groups)), y, slope)
            grad_outer.addmm_(slope.T, y)
            slope = torch.ops.aten.threshold_backward(slope @ outer, y, 0)
            grad_bias += slope.sum(0)
            columns = slice(inner.shape[1] - x.shape[1], None)
            grad_inner[:, columns].addmm_(slope.T, x)
            events = (slope @ inner[:, columns]).view(len(rows), groups, rows.shape[1], size)
            grad_k.index_add_(0, rows.flatten(), events.transpose(1, 2).flatten(0, 1))
        grad_inner.addr_(grad_bias, places.flatten())
        grad_places = (grad_bias @ inner).view(places.shape)
        others = [None] * len(windows)
        return grad_k[:-1], grad_places, grad_inner, grad_bias, grad_outer, *others


def _with_gradient(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Of windows those with a gradient, and all where that is most of them.

    Args:
        rows: [n, w].
        others: [n, G, ...], the last one is the gradient; they come back as [m * G, ...].
    """
    taught = others[-1].flatten(1).any(1)
    # Copying a window takes a tenth of what it takes to go backward through it.
    if 4 * int(taught.sum()) < 3 * len(taught):
        rows, others = rows[taught], tuple(x[taught] for x in others)
    return rows, *(x.flatten(0, 1) for x in others)


def _keys(k: Tensor, rows: Tensor) -> Tensor:
    """Those of each window and key/value head side by side, [n * G, w * d]."""
    groups, size = k.shape[1:]
    heads = rows[:, None] * groups + torch.arange(groups)[:, None]
    # Taken in the order in which they are to lie: turning them round would take far longer.
    taken = pad(k, (0, 0, 0, 0, 0, 1)).flatten(0, 1).index_select(0, heads.flatten())
    return taken.view(-1, rows.shape[1] * size)
