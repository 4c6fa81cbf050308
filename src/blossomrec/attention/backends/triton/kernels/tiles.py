# type: ignore -- the bodies are Triton, which Python's types do not describe
"""What the kernels share: tiles, the keys that a tile sees step by step, a step of a softmax.

A tile is one block of one history as queries. Its rows are (event, head of the group), event by
event, and stand in groups of 16, [B, 16]: a group is the work of one warp, and 16 rows are what
tensor cores take, whatever R is. Keys that all events share are repeated for each group, [B, S, d].
Keys that each event has for itself (far ones, selected blocks) are put side by side, [B, C, d],
``KEYS`` for each of the group's 16 / R events, and a mask leaves to each event its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below every score, and still finite: a row that has seen no key yet must not give NaN.
NOTHING = tl.constexpr(-1.0e30)
LOG_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_of(table, number):
    """Start and length of the tile's history, the tile's place in it, number of the history."""
    fields = table + number * 5
    return tl.load(fields), tl.load(fields + 1), tl.load(fields + 2), tl.load(fields + 3)


@triton.jit
def rows_of(x, row, held, x_row, D: tl.constexpr):
    """Rows of ``x``, [..., D]; zero where not ``held``, which may broadcast against ``row``."""
    address = x + tl.expand_dims(row * x_row, -1) + tl.arange(0, D)
    return tl.load(address, mask=tl.expand_dims(held, -1), other=0.0)


@triton.jit
def is_visible(distance, WINDOW: tl.constexpr):
    """Whether the short-term path reaches over a non-negative distance."""
    return (distance < WINDOW) | ((distance & (distance - 1)) == 0)


@triton.jit
def near_mask(query, key, length, WINDOW: tl.constexpr, CAUSAL: tl.constexpr):
    """The pattern of distances between positions that broadcast against each other."""
    inside = (query >= 0) & (query < length) & (key >= 0) & (key < length)
    distance = query - key
    if CAUSAL:
        inside &= distance >= 0
    return inside & is_visible(tl.abs(distance), WINDOW)


@triton.jit
def sink_mask(query, key, length, WINDOW: tl.constexpr, SINKS: tl.constexpr, CAUSAL: tl.constexpr):
    """Keys that are seen as sinks alone, not already over a distance of the pattern."""
    inside = (query >= 0) & (query < length) & (key >= 0) & (key < length)
    distance = query - key
    if CAUSAL:
        inside &= (key < SINKS) & (distance >= 0)
    else:
        inside &= key >= length - SINKS
    return inside & (is_visible(tl.abs(distance), WINDOW) == 0)


@triton.jit
def own_mask(query, key, length, S: tl.constexpr, CAUSAL: tl.constexpr):
    """The long-term path inside one block."""
    inside = (query >= 0) & (query < length) & (key < length) & (query // S == key // S)
    if CAUSAL:
        inside &= key <= query
    return inside


@triton.jit
def seen_twice(query, key, length, WINDOW: tl.constexpr, SINKS: tl.constexpr, CAUSAL: tl.constexpr):
    """Whether the short-term path, too, sees a key that the long-term path sees: positions."""
    seen = is_visible(tl.abs(query - key), WINDOW)
    if SINKS > 0:
        seen |= (key < SINKS) if CAUSAL else (key >= length - SINKS)
    return seen


@triton.jit
def sink_block(step, length, S: tl.constexpr, CAUSAL: tl.constexpr):
    """Number of the block that holds sinks: from the first one on, or from the last one back."""
    if CAUSAL:
        return step
    else:
        return (length - 1) // S - step


@triton.jit
def tile_rows(R: tl.constexpr, S: tl.constexpr):
    """Event inside the tile and head inside the group of each row, [B, 16]."""
    row = tl.arange(0, S * R // 16)[:, None] * 16 + tl.arange(0, 16)[None]
    return row // R, row % R


@triton.jit
def block_keys_of(number, B: tl.constexpr, S: tl.constexpr):
    """Positions in a block, repeated for each group of rows, [B, S]."""
    return number * S + tl.arange(0, S)[None] + tl.zeros([B, 1], tl.int32)


@triton.jit
def near_keys(
    step,
    query,
    block,
    length,
    S: tl.constexpr,
    NEAR: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """A step of the short-term path over shared keys: position and held [B, S], seen [B, 16, S].

    The neighbouring blocks come first, then those that hold sinks.
    """
    neighbours: tl.constexpr = NEAR + 1 if CAUSAL else 2 * NEAR + 1
    number = block + step - NEAR
    if SINKS > 0:
        is_sink = step >= neighbours
        number = tl.where(is_sink, sink_block(step - neighbours, length, S, CAUSAL), number)
    key = block_keys_of(number, query.shape[0], S)
    seen = near_mask(query[:, :, None], key[:, None], length, WINDOW, CAUSAL)
    if SINKS > 0:
        sink = sink_mask(query[:, :, None], key[:, None], length, WINDOW, SINKS, CAUSAL)
        seen = tl.where(is_sink, sink, seen)
    return key, (key >= 0) & (key < length), seen


@triton.jit
def columns(R: tl.constexpr, S: tl.constexpr, KEYS: tl.constexpr):
    """The columns of each group: event [B, C], its how many-th key [1, C], whose [1, 16, C]."""
    column = tl.arange(0, 16 // R * KEYS)[None]
    event = tl.arange(0, S * R // 16)[:, None] * (16 // R) + column // KEYS
    mine = (tl.arange(0, 16) // R)[None, :, None] == (column // KEYS)[:, None]
    return event, column % KEYS, mine


@triton.jit
def far_steps(reach, KEYS: tl.constexpr, FIRST_FAR: tl.constexpr, FAR_STEPS: tl.constexpr):
    """How many steps, of ``KEYS`` powers of two each, begin with a distance below ``reach``."""
    steps = 0
    for step in tl.static_range(FAR_STEPS):
        steps += ((1 << (FIRST_FAR + step * KEYS)) < reach).to(tl.int32)
    return steps


@triton.jit
def far_keys(step, steps, query, turn, length, KEYS: tl.constexpr, FIRST_FAR: tl.constexpr):
    """A step of the short-term path over far powers of two: position and held, [B, C].

    query: position of each column's event; turn: which of the step's ``KEYS`` distances it takes.
    The distances back take ``steps`` steps, then come those ahead.
    """
    exponent = FIRST_FAR + step % steps * KEYS + turn
    distance = 1 << tl.minimum(exponent, 30)
    key = tl.where(step < steps, query - distance, query + distance)
    return key, (exponent < 31) & (query < length) & (key >= 0) & (key < length)


@triton.jit
def attend(top, total, mean, q, k, v, seen, scale, PRECISION: tl.constexpr):
    """Take keys into a running softmax over base-2 exponents.

    top, total [B, 16]: largest score and sum of weights so far; mean [B, 16, d]: weighted sum of
    values; q [B, 16, d]; k, v [B, C, d]; seen [B, 16, C].
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 2))
    weights = tl.exp2(scores - higher[:, :, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(weights, 2)
    mean *= fade[:, :, None]
    mean = tl.dot(weights.to(v.dtype), v, mean, input_precision=PRECISION)
    return higher, total, mean


@triton.jit
def weights_and_slopes(q, grad, k, v, seen, lse, scale, PRECISION: tl.constexpr):
    """Softmax weights again, and the gradient of the output along each value, both [B, 16, C]."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(seen, scores - lse[:, :, None], float("-inf"))
    return tl.exp2(scores), tl.dot(grad, tl.trans(v), input_precision=PRECISION)
