# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Backward kernel of the queries: one program is one tile of queries and one key/value head."""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.tiles import (
    LOG_2,
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
    weights_and_slopes,
)


@triton.jit(do_not_specialize=["events", "no_list"])
def backward_queries_kernel(
    q,
    k,
    v,
    gates,
    selected,
    table,
    out,
    lse,
    grad,
    grad_q,
    grad_gates,
    shifts,
    lists,
    events,
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
    """grad_q [T, H, d], grad_gates [T, H, 2], and for the kernel of the keys: shifts [2, T, H],
    lists [T, G, n], the inverse list that each choice belongs to.

    Of a softmax with weights w over values v the gradient of a score is w * (slope - shift), with
    slope = grad . v and shift = sum(w * slope) = grad . output. The output of the short-term path
    is found anew, as it is cheap; what is then missing of grad . out is the long-term shift.

    A union has one softmax, whose shift is grad . out. The gradient of the bias is the sum of those
    of the scores it is added to, and as all scores' sum up to 0, minus the sum of the others: the
    mean of both suffers half as much by the rounding of ``out``.
    """
    number, group = tl.program_id(0) // G, tl.program_id(0) % G
    start, length, block, _ = tile_of(table, number)
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
    numbers: tl.constexpr = 1 if UNION else 2
    gates += base * (G * R * numbers)
    grad_gates += base * (G * R * numbers)
    out += base * (G * R * D)
    grad += base * (G * R * D)
    grad_q += base * (G * R * D)
    lse += base * (G * R)
    shifts += base * (G * R)
    selected += base * (G * N)
    lists += base * (G * N)
    place = event * (G * R) + group * R + head
    rows_q = rows_of(q, event * q_event + head * q_head, inside, 1, D)
    rows_grad = rows_of(grad, place, inside, D, D)
    B: tl.constexpr = S * R // 16
    column, turn, mine = columns(R, S, KEYS)
    powers = far_steps(first + S if CAUSAL else length, KEYS, FIRST_FAR, FAR_STEPS)
    parts: tl.constexpr = S // KEYS
    # In the first block, or where there is no other, there is nothing to choose.
    choices = tl.where((block > 0) if CAUSAL else (length > S), N * parts, 0)

    plane = events.to(tl.int64) * (G * R)
    short = tl.load(lse + plane + place, mask=inside, other=0.0)
    gate_type = grad_gates.dtype.element_ty
    if UNION:
        rows_out = rows_of(out, place, inside, D, D).to(tl.float32)
        shift = tl.sum(rows_out * rows_grad.to(tl.float32), 2)
        gate = tl.full([B, 16], 1.0, tl.float32)
        bias_slope = tl.zeros([B, 16], tl.float32)
    else:
        shift = tl.zeros([B, 16], tl.float32)
        for step in range(NEAR_STEPS):
            key, held, seen = near_keys(step, query, block, length, S, NEAR, WINDOW, SINKS, CAUSAL)
            near_k, near_v = rows_of(k, key, held, k_event, D), rows_of(v, key, held, v_event, D)
            weights, slopes = weights_and_slopes(
                rows_q, rows_grad, near_k, near_v, seen, short, scale, PRECISION
            )
            shift += tl.sum(weights * slopes, 2)
        for step in range(powers if CAUSAL else 2 * powers):
            key, held = far_keys(step, powers, first + column, turn, length, KEYS, FIRST_FAR)
            far_k, far_v = rows_of(k, key, held, k_event, D), rows_of(v, key, held, v_event, D)
            seen = held[:, None] & mine
            weights, slopes = weights_and_slopes(
                rows_q, rows_grad, far_k, far_v, seen, short, scale, PRECISION
            )
            shift += tl.sum(weights * slopes, 2)

        tl.store(grad_gates + place * 2 + 1, shift.to(gate_type), mask=inside)
        gate = tl.load(gates + place * 2 + 1, mask=inside, other=0.0).to(tl.float32)
        shift = gate * shift
        tl.store(shifts + plane + place, shift, mask=inside)
    sum_q = tl.zeros([B, 16, D], tl.float32)
    for step in range(NEAR_STEPS):
        key, held, seen = near_keys(step, query, block, length, S, NEAR, WINDOW, SINKS, CAUSAL)
        near_k, near_v = rows_of(k, key, held, k_event, D), rows_of(v, key, held, v_event, D)
        weights, slopes = weights_and_slopes(
            rows_q, rows_grad, near_k, near_v, seen, short, scale, PRECISION
        )
        steep = weights * (gate[:, :, None] * slopes - shift[:, :, None])
        if UNION:
            bias_slope += tl.sum(steep, 2)
        sum_q = tl.dot(steep.to(near_k.dtype), near_k, sum_q, input_precision=PRECISION)
    for step in range(powers if CAUSAL else 2 * powers):
        key, held = far_keys(step, powers, first + column, turn, length, KEYS, FIRST_FAR)
        far_k, far_v = rows_of(k, key, held, k_event, D), rows_of(v, key, held, v_event, D)
        seen = held[:, None] & mine
        weights, slopes = weights_and_slopes(
            rows_q, rows_grad, far_k, far_v, seen, short, scale, PRECISION
        )
        steep = weights * (gate[:, :, None] * slopes - shift[:, :, None])
        if UNION:
            bias_slope += tl.sum(steep, 2)
        sum_q = tl.dot(steep.to(far_k.dtype), far_k, sum_q, input_precision=PRECISION)

    if not UNION:
        rows_out = rows_of(out, place, inside, D, D).to(tl.float32)
        shift = tl.sum(rows_out * rows_grad.to(tl.float32), 2) - shift
        gate = tl.load(gates + place * 2, mask=inside, other=0.0).to(tl.float32)
    long = tl.load(lse + place, mask=inside, other=0.0)
    own = block_keys_of(block, B, S)
    block_k = rows_of(k, own, own < length, k_event, D)
    block_v = rows_of(v, own, own < length, v_event, D)
    visible = own_mask(query[:, :, None], own[:, None], length, S, CAUSAL)
    if UNION:
        visible &= ~seen_twice(query[:, :, None], own[:, None], length, WINDOW, SINKS, CAUSAL)
    block_weights, block_slopes = weights_and_slopes(
        rows_q, rows_grad, block_k, block_v, visible, long, scale, PRECISION
    )
    exact_shift = tl.sum(block_weights * block_slopes, 2)
    block_steep = block_weights * (gate[:, :, None] * block_slopes - shift[:, :, None])
    if UNION:
        bias_slope -= tl.sum(block_steep, 2)
    sum_q = tl.dot(block_steep.to(block_k.dtype), block_k, sum_q, input_precision=PRECISION)
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
        weights, slopes = weights_and_slopes(
            rows_q, rows_grad, far_k, far_v, seen, long, scale, PRECISION
        )
        exact_shift += tl.sum(weights * slopes, 2)
        steep = weights * (gate[:, :, None] * slopes - shift[:, :, None])
        if UNION:
            bias_slope -= tl.sum(steep, 2)
        sum_q = tl.dot(steep.to(far_k.dtype), far_k, sum_q, input_precision=PRECISION)

    if UNION:
        tl.store(grad_gates + place, (0.5 * bias_slope).to(gate_type), mask=inside)
        tl.store(shifts + place, shift, mask=inside)
    else:
        # Summed up over the keys, the shift is free of the rounding of ``out``.
        tl.store(grad_gates + place * 2, exact_shift.to(gate_type), mask=inside)
        tl.store(shifts + place, gate * exact_shift, mask=inside)
    address = grad_q + place[:, :, None] * D + tl.arange(0, D)
    result = (sum_q * (scale * LOG_2)).to(grad_q.dtype.element_ty)
    tl.store(address, result, mask=inside[:, :, None])

    # The history's first tile has number ``number - block``.
    tile_event = tl.arange(0, S)
    places = (tile_event * G + group) * N
    for step in range(N):
        listed = tl.load(selected + places + step, mask=first + tile_event < length, other=-1)
        listed = tl.where(listed >= 0, (number - block + listed) * G + group, no_list)
        tl.store(lists + places + step, listed, mask=first + tile_event < length)
