# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Rows of queries as the keys' backward kernels take them, and what they give to one block.

Rows come in groups of 16, [B, 16], as in tiles.py, and each group sums for itself, [B, S, d]: the
sums meet at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.tiles import (
    rows_of,
    seen_twice,
    tile_rows,
)


@triton.jit
def query_rows(q, grad, event, head, held, q_event, q_head, H: tl.constexpr, D: tl.constexpr):
    """q and the output's gradient [..., D] of packed rows ``event``, and their place in [T, H]."""
    place = event * H + head
    tile_q = rows_of(q, event * q_event + head * q_head, held, 1, D)
    return tile_q, rows_of(grad, place, held, D, D), place


@triton.jit
def scores_and_slopes(k, v, q, grad, scale, PRECISION: tl.constexpr):
    """Of a block's keys with rows of queries, both [B, S, 16]."""
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    return scores, tl.dot(v, tl.trans(grad), input_precision=PRECISION)


@triton.jit
def path_weights(scores, slopes, seen, gates, lse, shifts, place, held, UNION: tl.constexpr):
    """Weights of one path times its gate, and the gradient of its scores, [B, S, 16].

    The pointers are those of the path; see backward_queries.py for slope and shift.
    """
    log_sum = tl.load(lse + place, mask=held, other=0.0)[:, None]
    shift = tl.load(shifts + place, mask=held, other=0.0)[:, None]
    weights = tl.exp2(tl.where(seen, scores - log_sum, float("-inf")))
    if UNION:
        return weights, weights * (slopes - shift)
    else:
        gate = tl.load(gates + place * 2, mask=held, other=0.0).to(tl.float32)[:, None]
        return weights * gate, weights * (gate * slopes - shift)


@triton.jit
def list_gradients(
    sum_k,
    sum_v,
    tile_k,
    tile_v,
    q,
    grad,
    gates,
    lse,
    shifts,
    order,
    low,
    high,
    start,
    length,
    key,
    group,
    scale,
    q_event,
    q_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    UNION: tl.constexpr,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add what the queries in places ``low`` to ``high`` of an inverse list give, S at a step."""
    turn, head = tile_rows(R, S)
    for begin in range(low, high, S):
        held = begin + turn < high
        event = tl.load(order + begin + turn, mask=held, other=0) // (G * N)
        rows_q, rows_grad, place = query_rows(
            q, grad, event, group * R + head, held, q_event, q_head, G * R, D
        )
        scores, slopes = scores_and_slopes(tile_k, tile_v, rows_q, rows_grad, scale, PRECISION)
        seen = held[:, None]
        if UNION:
            query = (event - start).to(tl.int32)[:, None]
            seen &= ~seen_twice(query, key[:, :, None], length, WINDOW, SINKS, CAUSAL)
        weights, steep = path_weights(scores, slopes, seen, gates, lse, shifts, place, held, UNION)
        sum_k = tl.dot(steep.to(rows_q.dtype), rows_q, sum_k, input_precision=PRECISION)
        sum_v = tl.dot(weights.to(rows_q.dtype), rows_grad, sum_v, input_precision=PRECISION)
    return sum_k, sum_v


@triton.jit
def far_gradients(
    k,
    v,
    q,
    grad,
    gates,
    lse,
    shifts,
    start,
    length,
    first,
    group,
    scale,
    q_event,
    q_head,
    k_event,
    v_event,
    SIGN: tl.constexpr,
    FIRST_FAR: tl.constexpr,
    UNION: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
):
    """What the queries a far power of two after (SIGN 1) or before the keys give, [S, D] each.

    One key meets one query at a time, [S, R, D]: there is no matrix product to make of it.
    """
    key = first + tl.arange(0, S)
    row = (start + key).to(tl.int64)
    rows_k = rows_of(k, row, key < length, k_event, D).to(tl.float32)[:, None]
    rows_v = rows_of(v, row, key < length, v_event, D).to(tl.float32)[:, None]
    sum_k = tl.zeros([S, R, D], tl.float32)
    sum_v = tl.zeros([S, R, D], tl.float32)
    head = group * R + tl.arange(0, R)[None]
    reach = length - first if SIGN > 0 else first + S
    distance = tl.full([], 1 << FIRST_FAR, tl.int32)
    while distance < reach:
        query = (key + SIGN * distance)[:, None]
        held = (query >= 0) & (query < length) & (key < length)[:, None]
        rows_q, rows_grad, place = query_rows(
            q, grad, (start + query).to(tl.int64), head, held, q_event, q_head, G * R, D
        )
        rows_q, rows_grad = rows_q.to(tl.float32), rows_grad.to(tl.float32)
        gate = 1.0
        if not UNION:
            gate = tl.load(gates + place * 2, mask=held, other=0.0).to(tl.float32)
        log_sum = tl.load(lse + place, mask=held, other=0.0)
        shift = tl.load(shifts + place, mask=held, other=0.0)
        scores = tl.sum(rows_q * rows_k, 2) * scale - log_sum
        weights = tl.exp2(tl.where(held, scores, float("-inf")))
        steep = weights * (gate * tl.sum(rows_grad * rows_v, 2) - shift)
        sum_k += steep[:, :, None] * rows_q
        sum_v += (weights * gate)[:, :, None] * rows_grad
        distance *= 2
    return tl.sum(sum_k, 1), tl.sum(sum_v, 1)
