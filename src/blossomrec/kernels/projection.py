# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Queries, keys, values and gates of an attention from one product and one pass over its rows.

The columns of the product are those of the queries, the keys, the values and the gates, in this
order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.kernels import compute_dtype, product

ROWS = 16


class Heads(NamedTuple):
    """Query heads, key/value heads, size of a head, pairs of its dimensions that are turned."""

    queries: int
    keys: int
    size: int
    pairs: int


@triton.jit
def turn_heads(
    source,
    target,
    source_width,
    target_width,
    angles,
    row,
    inside,
    way,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Copy the heads of rows, their pairs (i, i + PAIRS) turned: forth (way 1) or back (-1)."""
    row = row.to(tl.int64)[:, None, None]
    head = tl.arange(0, HEADS_BLOCK)[None, :, None]
    inside = inside[:, None, None] & (head < HEADS)
    source += row * source_width + head * D
    target += row * target_width + head * D
    kind = target.dtype.element_ty
    if PAIRS > 0:
        pair = tl.arange(0, PAIRS_BLOCK)[None, None]
        turned = inside & (pair < PAIRS)
        angle = angles + row * (2 * PAIRS) + pair + head * 0
        cos = tl.load(angle, mask=turned, other=0.0)
        sin = tl.load(angle + PAIRS, mask=turned, other=0.0) * way
        first = tl.load(source + pair, mask=turned, other=0.0).to(tl.float32)
        second = tl.load(source + pair + PAIRS, mask=turned, other=0.0).to(tl.float32)
        tl.store(target + pair, (first * cos - second * sin).to(kind), mask=turned)
        tl.store(target + pair + PAIRS, (second * cos + first * sin).to(kind), mask=turned)
    if 2 * PAIRS < D:
        rest = 2 * PAIRS + tl.arange(0, REST_BLOCK)[None, None]
        kept = inside & (rest < D)
        tl.store(target + rest, tl.load(source + rest, mask=kept, other=0.0).to(kind), mask=kept)


@triton.jit(do_not_specialize=["rows"])
def split_kernel(
    joint,
    bias,
    angles,
    q,
    k,
    v,
    gates,
    rows,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    H_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of the product to queries and keys, turned, values, and gates through the sigmoid."""
    WIDTH: tl.constexpr = (H + 2 * G) * D + 2 * H * GATED
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held = row < rows
    turn_heads(
        joint, q, WIDTH, H * D, angles, row, held, 1.0,
        H, D, PAIRS, H_BLOCK, PAIRS_BLOCK, REST_BLOCK,
    )  # fmt: skip
    joint += H * D
    turn_heads(
        joint, k, WIDTH, G * D, angles, row, held, 1.0,
        G, D, PAIRS, G_BLOCK, PAIRS_BLOCK, REST_BLOCK,
    )  # fmt: skip
    joint += G * D
    turn_heads(
        joint, v, WIDTH, G * D, angles, row, held, 1.0, G, D, 0, G_BLOCK, PAIRS_BLOCK, D_BLOCK
    )
    if GATED:
        column = tl.arange(0, 2 * H_BLOCK)
        inside = held[:, None] & (column < 2 * H)[None]
        row = row.to(tl.int64)[:, None]
        value = tl.load(joint + G * D + row * WIDTH + column[None], mask=inside, other=0.0)
        value = value.to(tl.float32)
        value += tl.load(bias + column, mask=column < 2 * H, other=0.0).to(tl.float32)[None]
        value = 1.0 / (1.0 + tl.exp(-value))
        tl.store(gates + row * (2 * H) + column[None], value.to(gates.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows"])
def join_kernel(
    q,
    k,
    v,
    gates,
    grad_gates,
    angles,
    joint,
    rows,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    H_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of queries, keys, values and gates to that of the product."""
    WIDTH: tl.constexpr = (H + 2 * G) * D + 2 * H * GATED
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held = row < rows
    turn_heads(
        q, joint, H * D, WIDTH, angles, row, held, -1.0,
        H, D, PAIRS, H_BLOCK, PAIRS_BLOCK, REST_BLOCK,
    )  # fmt: skip
    joint += H * D
    turn_heads(
        k, joint, G * D, WIDTH, angles, row, held, -1.0,
        G, D, PAIRS, G_BLOCK, PAIRS_BLOCK, REST_BLOCK,
    )  # fmt: skip
    joint += G * D
    turn_heads(
        v, joint, G * D, WIDTH, angles, row, held, 1.0, G, D, 0, G_BLOCK, PAIRS_BLOCK, D_BLOCK
    )
    if GATED:
        column = tl.arange(0, 2 * H_BLOCK)[None]
        inside = held[:, None] & (column < 2 * H)
        row = row.to(tl.int64)[:, None]
        place = row * (2 * H) + column
        gate = tl.load(gates + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad_gates + place, mask=inside, other=0.0).to(tl.float32)
        slope *= gate * (1.0 - gate)
        tl.store(joint + G * D + row * WIDTH + column, slope.to(joint.dtype.element_ty), inside)


def project(
    x: Tensor, weights: tuple[Tensor, ...], gate_bias: Tensor | None, angles: Tensor, heads: Heads
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Projections of ``x``, queries and keys turned, gates through the sigmoid.

    Args:
        x: [T, D].
        weights: of queries [H * d, D], keys and values [G * d, D], and gates [2 * H, D] where
            ``gate_bias`` is given.
        gate_bias: [2 * H]; None without gates.
        angles: float32 [T, 2, m/2], cosine and sine of each row's angles.
        heads: H, G, d, m/2.

    Returns:
        q [T, H, d], k and v [T, G, d], gates [T, H, 2] or None, in the type of autocast, or of
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
        gates = None if gate_bias is None else joint.new_empty(len(x), heads.queries, 2)
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
    return (triton.cdiv(len(x), ROWS),)


def _form(heads: Heads, gates: Tensor | None) -> dict[str, int | bool]:
    rest = max(1, heads.size - 2 * heads.pairs)
    return {
        "H": heads.queries,
        "G": heads.keys,
        "D": heads.size,
        "PAIRS": heads.pairs,
        "H_BLOCK": triton.next_power_of_2(heads.queries),
        "G_BLOCK": triton.next_power_of_2(heads.keys),
        "PAIRS_BLOCK": triton.next_power_of_2(max(1, heads.pairs)),
        "REST_BLOCK": triton.next_power_of_2(rest),
        "D_BLOCK": triton.next_power_of_2(heads.size),
        "GATED": gates is not None,
        "ROWS": ROWS,
    }
