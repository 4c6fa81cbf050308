# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Queries, keys, values and gates of an attention from one product and one pass over its rows.

The columns of the product are those of the queries, the keys, the values and the gates, in this
order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.kernels.projection import join_kernel, split_kernel
from blossomrec.attention.backends.gpu.products import cdiv, compute_dtype, next_power_of_2, product

ROWS = 16


class Sizes(NamedTuple):
    """Query heads, key/value heads, size of a head, pairs of its dimensions that are turned."""

    queries: int
    keys: int
    size: int
    pairs: int


def project(
    x: Tensor, weights: tuple[Tensor, ...], gate_bias: Tensor | None, angles: Tensor, heads: Sizes
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Projections of ``x``, queries and keys turned, two gates a head through the sigmoid.

    One number a head instead is the bias of a union, left as it is.

    Args:
        x: [T, D].
        weights: of queries [H * d, D], keys and values [G * d, D], and gates [2 * H, D], or [H, D]
            of a union, where ``gate_bias`` is given.
        gate_bias: [2 * H], or [H] of a union; None without gates.
        angles: float32 [T, 2, m/2], cosine and sine of each row's angles.
        heads: H, G, d, m/2.

    Returns:
        q [T, H, d], k and v [T, G, d], gates [T, H, 2 or 1] or None, in the type of autocast, or of
        ``x`` without.
    """
    q, k, v, gates = _Project.apply(x, gate_bias, angles, heads, *weights)
    return q, k, v, gates


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate_bias, angles, heads, *weights):
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.to(dtype), torch.cat(weights).to(dtype)
            joint = x @ weight.T
        q = joint.new_empty(len(x), heads.queries, heads.size)
        k, v = (joint.new_empty(len(x), heads.keys, heads.size) for _ in range(2))
        gates = None
        if gate_bias is not None:
            gates = joint.new_empty(len(x), heads.queries, len(gate_bias) // heads.queries)
        if len(x):
            form = _form(heads, gates)
            split_kernel[_grid(x)](joint, gate_bias, angles, q, k, v, gates, len(x), **form)
        ctx.save_for_backward(x, weight, gates, angles)
        ctx.heads, ctx.sizes = heads, [len(each) for each in weights]
        return q, k, v, gates

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, weight, gates, angles = ctx.saved_tensors
        q, k, v, grad_gates = (None if each is None else each.contiguous() for each in grads)
        joint = x.new_empty(len(x), len(weight))
        if len(x):
            form = _form(ctx.heads, gates)
            join_kernel[_grid(x)](q, k, v, gates, grad_gates, angles, joint, len(x), **form)
        with torch.autocast(x.device.type, enabled=False):
            grad_x = joint @ weight
            grad_weights = product(joint.T, x).split(ctx.sizes)
        grad_bias = None
        if gates is not None:
            grad_bias = joint[:, -ctx.sizes[-1] :].sum(0, dtype=grad_weights[0].dtype)
        return grad_x, grad_bias, None, None, *grad_weights


def _grid(x: Tensor) -> tuple[int]:
    return (cdiv(len(x), ROWS),)


def _form(heads: Sizes, gates: Tensor | None) -> dict[str, int | bool]:
    rest = max(1, heads.size - 2 * heads.pairs)
    return {
        "H": heads.queries,
        "G": heads.keys,
        "D": heads.size,
        "PAIRS": heads.pairs,
        "H_BLOCK": next_power_of_2(heads.queries),
        "G_BLOCK": next_power_of_2(heads.keys),
        "PAIRS_BLOCK": next_power_of_2(max(1, heads.pairs)),
        "REST_BLOCK": next_power_of_2(rest),
        "D_BLOCK": next_power_of_2(heads.size),
        "GATES": 0 if gates is None else gates.shape[2],
        "ROWS": ROWS,
    }
