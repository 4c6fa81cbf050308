# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Splitting a joint projection into rotated heads and gates, and joining their gradients."""

from __future__ import annotations

import triton
import triton.language as tl


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
    """Copy the heads of rows, their pairs (i, i + PAIRS) rotated: forth (way 1) or back (-1)."""
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
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of the product to queries and keys, turned, values, and gates.

    GATES numbers a head: two through the sigmoid, one, the bias of a union, as it is, or none.
    """
    WIDTH: tl.constexpr = (H + 2 * G) * D + GATES * H
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
    if GATES > 0:
        column = tl.arange(0, GATES * H_BLOCK)
        inside = held[:, None] & (column < GATES * H)[None]
        row = row.to(tl.int64)[:, None]
        value = tl.load(joint + G * D + row * WIDTH + column[None], mask=inside, other=0.0)
        value = value.to(tl.float32)
        value += tl.load(bias + column, mask=column < GATES * H, other=0.0).to(tl.float32)[None]
        if GATES == 2:
            value = 1.0 / (1.0 + tl.exp(-value))
        place = row * (GATES * H) + column[None]
        tl.store(gates + place, value.to(gates.dtype.element_ty), inside)


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
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of queries, keys, values and gates to that of the product."""
    WIDTH: tl.constexpr = (H + 2 * G) * D + GATES * H
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
    if GATES > 0:
        column = tl.arange(0, GATES * H_BLOCK)[None]
        inside = held[:, None] & (column < GATES * H)
        row = row.to(tl.int64)[:, None]
        place = row * (GATES * H) + column
        slope = tl.load(grad_gates + place, mask=inside, other=0.0).to(tl.float32)
        if GATES == 2:
            gate = tl.load(gates + place, mask=inside, other=0.0).to(tl.float32)
            slope *= gate * (1.0 - gate)
        tl.store(joint + G * D + row * WIDTH + column, slope.to(joint.dtype.element_ty), inside)
