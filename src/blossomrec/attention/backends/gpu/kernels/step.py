# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Kernels of one more event of many users, over pages of one block each.

A program is one user and one key/value head; the rows of its tiles are the heads of the group. The
best blocks are found in two stages, since one user may have thousands of blocks: a program for each
``SPAN`` of them, and a merge where they are attended. Rows of a step are user, position, first
block held and own page, see :class:`blossomrec.attention.state.paged.Step`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.selection import EMPTY
from blossomrec.attention.backends.triton.kernels.tiles import (
    LOG2_E,
    NOTHING,
    is_visible,
    rows_of,
    seen_twice,
)

# Rows of a tile of scores: what tensor cores take.
ROWS = tl.constexpr(16)


@triton.jit
def event_of(rows, row, users):
    """User, position, first block held and own page of a step's event."""
    user, position = tl.load(rows + row), tl.load(rows + users + row)
    return user, position, tl.load(rows + 2 * users + row), tl.load(rows + 3 * users + row)


@triton.jit(do_not_specialize=["users", "width"])
def append_kernel(
    k,
    v,
    pages,
    block_keys,
    table,
    rows,
    users,
    width,
    k_event,
    k_head,
    v_event,
    v_head,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    MEAN: tl.constexpr,
):
    """Every layer writes the same to the table, so that none need come first."""
    row, group = tl.program_id(0) // G, tl.program_id(0) % G
    user, position, first, page = event_of(rows, row, users)
    if group == 0:
        tl.store(table + user.to(tl.int64) * width + position // S - first, page)
    part = tl.arange(0, D)
    kind = pages.dtype.element_ty
    new_k = tl.load(k + row * k_event + group * k_head + part).to(kind)
    new_v = tl.load(v + row * v_event + group * v_head + part).to(kind)
    block = page.to(tl.int64) * G + group
    pages += block * (S * 2 * D)
    place = position % S
    tl.store(pages + place * 2 * D + part, new_k)
    tl.store(pages + place * 2 * D + D + part, new_v)
    # Nested, for only the first is known when it is compiled.
    if MEAN:  # noqa: SIM102
        if place == S - 1:
            earlier = tl.arange(0, S)
            keys = rows_of(pages, earlier, earlier < place, 2 * D, D).to(tl.float32)
            mean = (tl.sum(keys, 0) + new_k.to(tl.float32)) / S
            tl.store(block_keys + block * D + part, mean.to(kind))


@triton.jit(do_not_specialize=["users", "width"])
def span_kernel(
    q,
    block_keys,
    table,
    rows,
    best,
    candidates,
    users,
    width,
    q_event,
    q_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
):
    """best, candidates [B * G, spans, N]: scores and columns of each span's best blocks, in order.

    The scale 1/sqrt(d) is left out: it changes no order.
    """
    span, program = tl.program_id(0), tl.program_id(1)
    row, group = program // G, program % G
    user, position, first, _ = event_of(rows, row, users)
    own = position // S - first
    low = span * SPAN
    if low >= own:
        return
    head = tl.arange(0, R)
    rows_q = rows_of(q + row * q_event, group * R + head, head < R, q_head, D)
    mean_q = tl.sum(rows_q.to(tl.float32), 0) / R
    column = low + tl.arange(0, SPAN)
    eligible = column < own
    page = tl.load(table + user.to(tl.int64) * width + column, mask=eligible, other=0)
    block = page.to(tl.int64) * G + group
    keys = rows_of(block_keys, block, eligible, D, D).to(tl.float32)
    scores = tl.where(eligible, tl.sum(keys * mean_q[None], 1), float("-inf"))
    place = (program * tl.num_programs(0) + span) * N
    for rank in tl.static_range(N):
        lead, leader = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(best + place + rank, lead)
        tl.store(candidates + place + rank, low + leader)
        scores = tl.where(tl.arange(0, SPAN) == leader, float("-inf"), scores)


@triton.jit
def merge(best, candidates, held, N: tl.constexpr, MERGED: tl.constexpr, PLACES: tl.constexpr):
    """Columns of the best of ``held`` candidates, [PLACES]; ``EMPTY`` or above where there is none.

    Candidates of equal score stand by rising column.
    """
    slot = tl.arange(0, MERGED)
    scores = tl.load(best + slot, mask=slot < held, other=float("-inf"))
    columns = tl.load(candidates + slot, mask=slot < held, other=0)
    place = tl.arange(0, PLACES)
    chosen = place + EMPTY
    for rank in tl.static_range(N):
        lead, leader = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
        column = tl.sum(tl.where(slot == leader, columns, 0), 0)
        column = tl.where(lead > float("-inf"), column, rank + EMPTY)
        chosen = tl.where(place == rank, column, chosen)
        scores = tl.where(slot == leader, float("-inf"), scores)
    return chosen


@triton.jit
def take(top, total, mean, rows_q, tile_k, tile_v, seen, scale, PRECISION: tl.constexpr):
    """Take keys [C, d] that all rows share into their running softmaxes, over base-2 exponents."""
    tile_k, tile_v = tile_k.to(rows_q.dtype), tile_v.to(rows_q.dtype)
    scores = tl.dot(rows_q, tl.trans(tile_k), input_precision=PRECISION) * scale
    scores = tl.where(seen[None], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(weights, 1)
    mean *= fade[:, None]
    mean = tl.dot(weights.to(rows_q.dtype), tile_v, mean, input_precision=PRECISION)
    return higher, total, mean


@triton.jit
def near_position(
    step,
    position,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    FIRST_FAR: tl.constexpr,
    FAR: tl.constexpr,
):
    """Positions of 16 keys of the short-term path, and whether there is such a key."""
    turn = step * 16 + tl.arange(0, 16)
    exponent = FIRST_FAR + turn - WINDOW
    distance = tl.where(turn < WINDOW, turn, 1 << tl.minimum(tl.maximum(exponent, 0), 30))
    key = position - distance
    seen = (turn < WINDOW + FAR) & (exponent < 31)
    if SINKS > 0:
        sink = turn - (WINDOW + FAR)
        is_sink = (sink >= 0) & (sink < SINKS)
        alone = is_visible(position - sink, WINDOW) == 0
        key = tl.where(is_sink, sink, key)
        seen = tl.where(is_sink, alone, seen)
    return key, seen & (key <= position)


@triton.jit(do_not_specialize=["users", "width"])
def step_kernel(
    q,
    gates,
    pages,
    table,
    rows,
    best,
    candidates,
    out,
    selected,
    users,
    width,
    scale,
    q_event,
    q_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
    UNION: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    FIRST_FAR: tl.constexpr,
    FAR: tl.constexpr,
    SPAN: tl.constexpr,
    SPANS: tl.constexpr,
    MERGED: tl.constexpr,
    PLACES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [B, H, d]; selected [B, G, N]. Each path has its softmax, the gates weigh them.

    Of a union both paths have one, and the short-term path's scores a bias.
    """
    program = tl.program_id(0)
    row, group = program // G, program % G
    user, position, first, _ = event_of(rows, row, users)
    table += user.to(tl.int64) * width
    own = position // S - first
    spans = (own + SPAN - 1) // SPAN
    begin = program * (SPANS * N)
    chosen = merge(best + begin, candidates + begin, spans * N, N, MERGED, PLACES)
    place = tl.arange(0, PLACES)
    rank = tl.sum((chosen[None] < chosen[:, None]).to(tl.int32), 1)
    number = tl.where(chosen < EMPTY, chosen + first, -1)
    tl.store(selected + program * N + rank, number, mask=rank < N)
    chosen = tl.where(place == N, own, chosen)

    head = tl.arange(0, ROWS)
    held = head < R
    rows_q = rows_of(q + row * q_event, group * R + head, held, q_head, D)
    if pages.dtype.element_ty == tl.float32:
        rows_q = rows_q.to(tl.float32)
    gate = gates + (row * G * R + group * R + head) * (1 if UNION else 2)

    top = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, D], tl.float32)
    inside = tl.arange(0, S)
    for step in range(N + 1):
        column = tl.sum(tl.where(place == step, chosen, 0), 0)
        last = tl.where(column == own, position % S, tl.where(column < EMPTY, S - 1, -1))
        seen = inside <= last
        if UNION:
            seen &= ~seen_twice(position, (first + column) * S + inside, 0, WINDOW, SINKS, True)
        block = tl.load(table + column, mask=last >= 0, other=0).to(tl.int64) * G + group
        key = (block * S + inside) * (2 * D)
        tile_k, tile_v = rows_of(pages, key, seen, 1, D), rows_of(pages + D, key, seen, 1, D)
        top, total, mean = take(top, total, mean, rows_q, tile_k, tile_v, seen, scale, PRECISION)
    share = tl.load(gate, mask=held, other=0.0).to(tl.float32)
    if UNION:
        # Relative to scores that have the bias.
        top -= share * LOG2_E
    else:
        result = mean * (share / total)[:, None]
        top = tl.full([ROWS], NOTHING, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mean = tl.zeros([ROWS, D], tl.float32)
    for step in range((WINDOW + FAR + SINKS + 15) // 16):
        key, seen = near_position(step, position, WINDOW, SINKS, FIRST_FAR, FAR)
        seen &= key >= first * S
        column = tl.where(seen, key // S - first, own)
        block = tl.load(table + column, mask=seen, other=0).to(tl.int64) * G + group
        key = (block * S + key % S) * (2 * D)
        tile_k, tile_v = rows_of(pages, key, seen, 1, D), rows_of(pages + D, key, seen, 1, D)
        top, total, mean = take(top, total, mean, rows_q, tile_k, tile_v, seen, scale, PRECISION)
    if UNION:
        result = mean / total[:, None]
    else:
        share = tl.load(gate + 1, mask=held, other=0.0).to(tl.float32)
        result += mean * (share / total)[:, None]
    address = out + (row * G * R + group * R + head)[:, None] * D + tl.arange(0, D)[None]
    tl.store(address, result.to(out.dtype.element_ty), mask=held[:, None])
