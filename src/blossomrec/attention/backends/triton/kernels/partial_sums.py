# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Backward kernels for keys that very many queries see: sums over a part of the queries each.

Long inverse lists and sinks would keep the program of one block busy while all others are done.
Each program here leaves a sum in a buffer [..., 2, S, d], float32, keys first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.query_rows import (
    list_gradients,
    path_weights,
    query_rows,
    scores_and_slopes,
)
from blossomrec.attention.backends.triton.kernels.tiles import (
    block_keys_of,
    rows_of,
    sink_block,
    sink_mask,
    tile_of,
    tile_rows,
)

# Tiles of queries that one program sums up for the sinks.
SPAN = tl.constexpr(16)


@triton.jit
def write_sums(sums, number, sum_k, sum_v, S: tl.constexpr, D: tl.constexpr):
    place = tl.arange(0, S)[:, None] * D + tl.arange(0, D)
    sums += number.to(tl.int64) * (2 * S * D)
    tl.store(sums + place, sum_k)
    tl.store(sums + S * D + place, sum_v)


@triton.jit
def add_sums(sum_k, sum_v, sums, number, count, stride, S: tl.constexpr, D: tl.constexpr):
    """Add ``count`` sums, from ``number`` on in steps of ``stride``, in this order."""
    part = sums + number.to(tl.int64) * (2 * S * D)
    part += tl.arange(0, S)[:, None] * D + tl.arange(0, D)
    for _ in range(count):
        sum_k += tl.load(part)
        sum_v += tl.load(part + S * D)
        part += stride * (2 * S * D)
    return sum_k, sum_v


@triton.jit
def sink_slot(number, block, history, step, group, SINK_BLOCKS: tl.constexpr, G: tl.constexpr):
    """Where the sum of a span of tiles stands: no two spans of a batch share a place.

    number and block: of the span's first tile; step: which block of sinks.
    """
    span = (number - block) // SPAN + history + block // SPAN
    return (span * SINK_BLOCKS + step) * G + group


@triton.jit(do_not_specialize=["no_list"])
def list_sums_kernel(
    q,
    k,
    v,
    gates,
    table,
    lse,
    shifts,
    grad,
    order,
    starts,
    chunk_starts,
    owners,
    sums,
    no_list,
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
    PRECISION: tl.constexpr,
):
    """One program is one chunk of an inverse list, beyond the first ``CHUNK`` entries."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    if owner >= no_list:
        return
    start, length, block, _ = tile_of(table, owner // G)
    group = owner % G
    key = block_keys_of(block, S * R // 16, S)
    event = (start + key).to(tl.int64)
    # Only complete blocks are chosen: all their rows are there.
    tile_k = rows_of(k, event * k_event + group * k_head, key >= 0, 1, D)
    tile_v = rows_of(v, event * v_event + group * v_head, key >= 0, 1, D)
    low = tl.load(starts + owner) + (chunk - tl.load(chunk_starts + owner) + 1) * CHUNK
    high = tl.minimum(low + CHUNK, tl.load(starts + owner + 1))
    sum_k = tl.zeros([S * R // 16, S, D], tl.float32)
    sum_v = tl.zeros([S * R // 16, S, D], tl.float32)
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
        high,
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
    write_sums(sums, chunk, tl.sum(sum_k, 0), tl.sum(sum_v, 0), S, D)


@triton.jit(do_not_specialize=["events"])
def sink_sums_kernel(
    q,
    k,
    v,
    gates,
    table,
    lse,
    shifts,
    grad,
    sums,
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
    UNION: tl.constexpr,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    SINK_BLOCKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program is ``SPAN`` tiles of queries and one block of sinks."""
    number, group = tl.program_id(0) // G, tl.program_id(0) % G
    step = tl.program_id(1)
    start, length, block, history = tile_of(table, number)
    if (block % SPAN != 0) | (block * S >= length):
        return
    key = block_keys_of(sink_block(step, length, S, CAUSAL), S * R // 16, S)
    held = (key >= 0) & (key < length)
    event_key = (start + key).to(tl.int64)
    tile_k = rows_of(k, event_key * k_event + group * k_head, held, 1, D)
    tile_v = rows_of(v, event_key * v_event + group * v_head, held, 1, D)
    sum_k = tl.zeros([S * R // 16, S, D], tl.float32)
    sum_v = tl.zeros([S * R // 16, S, D], tl.float32)
    # The short-term half of what is kept for each path.
    plane = events.to(tl.int64) * (G * R)
    gates, lse, shifts = gates + 1, lse + plane, shifts + (0 if UNION else plane)
    event, head = tile_rows(R, S)
    for tile in range(block, tl.minimum(block + SPAN, (length + S - 1) // S)):
        query = tile * S + event
        inside = query < length
        packed = (start + query).to(tl.int64)
        rows_q, rows_grad, place = query_rows(
            q, grad, packed, group * R + head, inside, q_event, q_head, G * R, D
        )
        scores, slopes = scores_and_slopes(tile_k, tile_v, rows_q, rows_grad, scale, PRECISION)
        seen = sink_mask(query[:, None], key[:, :, None], length, WINDOW, SINKS, CAUSAL)
        weights, steep = path_weights(
            scores, slopes, seen, gates, lse, shifts, place, inside, UNION
        )
        sum_k = tl.dot(steep.to(rows_q.dtype), rows_q, sum_k, input_precision=PRECISION)
        sum_v = tl.dot(weights.to(rows_q.dtype), rows_grad, sum_v, input_precision=PRECISION)
    slot = sink_slot(number, block, history, step, group, SINK_BLOCKS, G)
    write_sums(sums, slot, tl.sum(sum_k, 0), tl.sum(sum_v, 0), S, D)
