# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Forward kernel: one program is one tile of queries and one key/value head."""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.tiles import (
    LOG2_E,
    NOTHING,
    attend,
    block_keys_of,
    columns,
    far_keys,
    far_steps,
    near_keys,
    own_mask,
    rows_of,
    seen_twice,
    tile_of,
    tile_rows,
)


@triton.jit(do_not_specialize=["events"])
def forward_kernel(
    q,
    k,
    v,
    gates,
    selected,
    table,
    out,
    lse,
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
    KEYS: tl.constexpr,
    S: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    NEAR: tl.constexpr,
    NEAR_STEPS: tl.constexpr,
    FIRST_FAR: tl.constexpr,
    FAR_STEPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [T, H, d], lse [2, T, H]: base-2 logarithm of the sum of each path's weights.

    Of a union both are those of its one softmax, the second less the bias: what has to be taken off
    the scores of either path, without the bias, before they become weights.
    """
    start, length, block, _ = tile_of(table, tl.program_id(0) // G)
    group = tl.program_id(0) % G
    first = block * S
    if first >= length:
        return
    k += start.to(tl.int64) * k_event + group * k_head
    v += start.to(tl.int64) * v_event + group * v_head
    event, head = tile_rows(R, S)
    query = first + event
    inside = query < length
    # Rows are found from the tile's first one.
    base = (start + first).to(tl.int64)
    q += base * q_event + group * R * q_head
    gates += base * (G * R * (1 if UNION else 2))
    out += base * (G * R * D)
    lse += base * (G * R)
    selected += base * (G * N)
    place = event * (G * R) + group * R + head
    rows_q = rows_of(q, event * q_event + head * q_head, inside, 1, D)
    B: tl.constexpr = S * R // 16
    column, turn, mine = columns(R, S, KEYS)
    powers = far_steps(first + S if CAUSAL else length, KEYS, FIRST_FAR, FAR_STEPS)
    parts: tl.constexpr = S // KEYS
    # In the first block, or where there is no other, there is nothing to choose.
    choices = tl.where((block > 0) if CAUSAL else (length > S), N * parts, 0)

    top = tl.full([B, 16], NOTHING, tl.float32)
    total = tl.zeros([B, 16], tl.float32)
    mean = tl.zeros([B, 16, D], tl.float32)
    for step in range(NEAR_STEPS):
        key, held, seen = near_keys(step, query, block, length, S, NEAR, WINDOW, SINKS, CAUSAL)
        near_k, near_v = rows_of(k, key, held, k_event, D), rows_of(v, key, held, v_event, D)
        top, total, mean = attend(top, total, mean, rows_q, near_k, near_v, seen, scale, PRECISION)
    for step in range(powers if CAUSAL else 2 * powers):
        key, held = far_keys(step, powers, first + column, turn, length, KEYS, FIRST_FAR)
        far_k, far_v = rows_of(k, key, held, k_event, D), rows_of(v, key, held, v_event, D)
        seen = held[:, None] & mine
        top, total, mean = attend(top, total, mean, rows_q, far_k, far_v, seen, scale, PRECISION)
    shorts = lse + events.to(tl.int64) * (G * R)
    if UNION:
        bias = tl.load(gates + place, mask=inside, other=0.0).to(tl.float32) * LOG2_E
        # All scores so far have the bias.
        top += bias
    else:
        gate = tl.load(gates + place * 2 + 1, mask=inside, other=0.0).to(tl.float32)
        total = tl.where(inside, total, 1.0)
        result = mean * (gate / total)[:, :, None]
        tl.store(shorts + place, top + tl.log2(total), mask=inside)
        top = tl.full([B, 16], NOTHING, tl.float32)
        total = tl.zeros([B, 16], tl.float32)
        mean = tl.zeros([B, 16, D], tl.float32)

    own = block_keys_of(block, B, S)
    block_k = rows_of(k, own, own < length, k_event, D)
    block_v = rows_of(v, own, own < length, v_event, D)
    visible = own_mask(query[:, :, None], own[:, None], length, S, CAUSAL)
    if UNION:
        visible &= ~seen_twice(query[:, :, None], own[:, None], length, WINDOW, SINKS, CAUSAL)
    top, total, mean = attend(top, total, mean, rows_q, block_k, block_v, visible, scale, PRECISION)
    choice = selected + (column * G + group) * N
    for step in range(choices):
        chosen = tl.load(choice + step // parts, mask=first + column < length, other=-1)
        key = chosen * S + step % parts * KEYS + turn
        far_k = rows_of(k, key, chosen >= 0, k_event, D)
        far_v = rows_of(v, key, chosen >= 0, v_event, D)
        held = chosen >= 0
        if UNION:
            held &= ~seen_twice(first + column, key, length, WINDOW, SINKS, CAUSAL)
        seen = held[:, None] & mine
        top, total, mean = attend(top, total, mean, rows_q, far_k, far_v, seen, scale, PRECISION)
    total = tl.where(inside, total, 1.0)
    if UNION:
        result = mean / total[:, :, None]
        tl.store(shorts + place, top + tl.log2(total) - bias, mask=inside)
    else:
        gate = tl.load(gates + place * 2, mask=inside, other=0.0).to(tl.float32)
        result += mean * (gate / total)[:, :, None]
    tl.store(lse + place, top + tl.log2(total), mask=inside)
    address = out + place[:, :, None] * D + tl.arange(0, D)
    tl.store(address, result.to(out.dtype.element_ty), mask=inside[:, :, None])
