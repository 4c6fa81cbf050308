# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Backward kernel of the keys and values: one program is one block and one key/value head.

A block's gradient comes from the queries near it (dense tiles), from those a far power of two away
(shifted tiles) and from those that selected it (its inverse list, gathered). What other programs
summed up of a long list and of the sinks is added in a fixed order: the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.partial_sums import SPAN, add_sums, sink_slot
from blossomrec.attention.backends.triton.kernels.query_rows import (
    far_gradients,
    list_gradients,
    path_weights,
    query_rows,
    scores_and_slopes,
)
from blossomrec.attention.backends.triton.kernels.tiles import (
    LOG_2,
    block_keys_of,
    near_mask,
    own_mask,
    rows_of,
    seen_twice,
    sink_block,
    tile_of,
    tile_rows,
)


@triton.jit(do_not_specialize=["events"])
def backward_keys_kernel(
    q,
    k,
    v,
    gates,
    table,
    lse,
    shifts,
    grad,
    grad_k,
    grad_v,
    order,
    starts,
    chunk_starts,
    chunk_sums,
    sink_sums,
    events,
    scale,
    q_event,
    q_head,
    k_event,
    k_head,
    v_event,
    v_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    UNION: tl.constexpr,
    CHUNK: tl.constexpr,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    NEAR: tl.constexpr,
    FIRST_FAR: tl.constexpr,
    SINK_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_k and grad_v [T, G, d]."""
    number, group = tl.program_id(0) // G, tl.program_id(0) % G
    start, length, block, history = tile_of(table, number)
    first = block * S
    if first >= length:
        return
    key = block_keys_of(block, S * R // 16, S)
    event_key = (start + key).to(tl.int64)
    tile_k = rows_of(k, event_key * k_event + group * k_head, key < length, 1, D)
    tile_v = rows_of(v, event_key * v_event + group * v_head, key < length, 1, D)
    sum_k = tl.zeros([S * R // 16, S, D], tl.float32)
    sum_v = tl.zeros([S * R // 16, S, D], tl.float32)
    # The short-term half of what is kept for each path; a union has one shift for both.
    plane = events.to(tl.int64) * (G * R)
    gates_short, lse_short = gates + 1, lse + plane
    shifts_short = shifts + (0 if UNION else plane)

    event, head = tile_rows(R, S)
    for step in range(NEAR + 1 if CAUSAL else 2 * NEAR + 1):
        query = first + (step if CAUSAL else step - NEAR) * S + event
        inside = (query >= 0) & (query < length)
        packed = (start + query).to(tl.int64)
        rows_q, rows_grad, place = query_rows(
            q, grad, packed, group * R + head, inside, q_event, q_head, G * R, D
        )
        scores, slopes = scores_and_slopes(tile_k, tile_v, rows_q, rows_grad, scale, PRECISION)
        seen = near_mask(query[:, None], key[:, :, None], length, WINDOW, CAUSAL)
        weights, steep = path_weights(
            scores, slopes, seen, gates_short, lse_short, shifts_short, place, inside, UNION
        )
        seen = own_mask(query[:, None], key[:, :, None], length, S, CAUSAL)
        if UNION:
            seen &= ~seen_twice(query[:, None], key[:, :, None], length, WINDOW, SINKS, CAUSAL)
        weights_long, steep_long = path_weights(
            scores, slopes, seen, gates, lse, shifts, place, inside, UNION
        )
        steep, weights = (steep + steep_long).to(q.dtype.element_ty), weights + weights_long
        sum_k = tl.dot(steep, rows_q, sum_k, input_precision=PRECISION)
        sum_v = tl.dot(weights.to(rows_q.dtype), rows_grad, sum_v, input_precision=PRECISION)

    owner = tl.program_id(0)
    low, high = tl.load(starts + owner), tl.load(starts + owner + 1)
    sum_k, sum_v = list_gradients(
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
        tl.minimum(low + CHUNK, high),
        start,
        length,
        key,
        group,
        scale,
        q_event,
        q_head,
        G,
        R,
        D,
        N,
        UNION,
        S,
        WINDOW,
        SINKS,
        CAUSAL,
        PRECISION,
    )
    grad_of_k, grad_of_v = tl.sum(sum_k, 0), tl.sum(sum_v, 0)

    for side in tl.static_range(1 if CAUSAL else 2):
        far_k, far_v = far_gradients(
            k + group * k_head,
            v + group * v_head,
            q,
            grad,
            gates_short,
            lse_short,
            shifts_short,
            start,
            length,
            first,
            group,
            scale,
            q_event,
            q_head,
            k_event,
            v_event,
            1 - 2 * side,
            FIRST_FAR,
            UNION,
            G,
            R,
            D,
            S,
        )
        grad_of_k += far_k
        grad_of_v += far_v
    low, high = tl.load(chunk_starts + owner), tl.load(chunk_starts + owner + 1)
    grad_of_k, grad_of_v = add_sums(grad_of_k, grad_of_v, chunk_sums, low, high - low, 1, S, D)
    for step in range(SINK_BLOCKS):
        if sink_block(step, length, S, CAUSAL) == block:
            slot = sink_slot(number - block, 0, history, step, group, SINK_BLOCKS, G)
            spans = ((length + S - 1) // S + SPAN - 1) // SPAN
            stride: tl.constexpr = SINK_BLOCKS * G
            grad_of_k, grad_of_v = add_sums(
                grad_of_k, grad_of_v, sink_sums, slot, spans, stride, S, D
            )

    row = first + tl.arange(0, S)
    place = (start + row).to(tl.int64)[:, None] * (G * D) + group * D + tl.arange(0, D)
    held = (row < length)[:, None]
    grad_of_k = (grad_of_k * (scale * LOG_2)).to(grad_k.dtype.element_ty)
    tl.store(grad_k + place, grad_of_k, mask=held)
    tl.store(grad_v + place, grad_of_v.to(grad_v.dtype.element_ty), mask=held)
