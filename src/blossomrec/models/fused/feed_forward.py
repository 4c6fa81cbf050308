# Arguments of an autograd function are those of its forward.
# pyright: reportCallIssue=false
"""The second half of a post-norm layer: norm(x + dropout(feed-forward(x))).

Between the products stand two passes forward and two backward. The hidden layer, the widest thing
in a layer, is not kept for the backward pass but made again from the input.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.activation import bias_activation, bias_activation_backward
from blossomrec.attention.backends.gpu.products import compute_dtype, product
from blossomrec.models.fused import norm
from blossomrec.models.fused.dropout import draw_seed

# Rows whose hidden layer and its gradient are in memory at a time in the backward pass.
CHUNK = 65_536


def feed_forward_norm(
    x: Tensor, inner: nn.Linear, outer: nn.Linear, layer_norm: nn.LayerNorm, p: float
) -> Tensor:
    """layer_norm(x + dropout(outer(gelu(inner(x))))).

    Args:
        x: [T, D].
        inner, outer: D -> F and F -> D, with biases.
        layer_norm: over D, with weight and bias.
        p: probability of dropout, 0 where there is none.

    Returns:
        [T, D] in the type of autocast, or of ``x`` without.
    """
    weights = (inner.weight, inner.bias, outer.weight, outer.bias)
    of_norm = (layer_norm.weight, layer_norm.bias)
    return _FeedForwardNorm.apply(x.contiguous(), layer_norm, p, *weights, *of_norm)


class _FeedForwardNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer_norm, p, *parameters):
        dtype = compute_dtype(x)
        # The norm's own are given so that they get a gradient.
        inner, inner_bias, outer, outer_bias, _, _ = parameters
        with torch.autocast(x.device.type, enabled=False):
            inner, outer = inner.to(dtype), outer.to(dtype)
            branch = bias_activation(x.to(dtype) @ inner.T, inner_bias) @ outer.T
        seed = draw_seed(x.device) if p else x.new_empty(0)
        ctx.save_for_backward(x, inner, inner_bias, outer, outer_bias, branch, seed)
        ctx.layer_norm, ctx.p = layer_norm, p
        return norm.forward(x, branch, outer_bias, layer_norm, p, seed, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, inner, inner_bias, outer, outer_bias, branch, seed = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad_x, grad_branch, sums = norm.backward(
                grad, x, branch, outer_bias, ctx.layer_norm, ctx.p, seed
            )
            chunks = zip(*(each.split(CHUNK) for each in (x, grad_branch, grad_x)), strict=True)
            parts = [_hidden_gradients(*chunk, inner, inner_bias, outer) for chunk in chunks]
            products = [reduce(torch.add, each) for each in zip(*parts, strict=True)]
        of_norm, of_shift, of_bias = sums.unbind()
        return grad_x, None, None, *products, of_bias, of_norm, of_shift


def _hidden_gradients(
    x: Tensor,
    grad_branch: Tensor,
    grad_x: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    outer: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inner weight, its bias and outer weight; that of x is added to ``grad_x``."""
    x = x.to(inner.dtype)
    hidden, grad_hidden = x @ inner.T, grad_branch @ outer
    grad_bias = bias_activation_backward(hidden, inner_bias, grad_hidden)
    if grad_x.dtype == inner.dtype:
        grad_x.addmm_(grad_hidden, inner)
    else:
        grad_x += grad_hidden @ inner
    return product(grad_hidden.T, x), grad_bias, product(grad_branch.T, hidden)
