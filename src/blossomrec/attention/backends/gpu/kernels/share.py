# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Of the selected blocks those that are taken until their share of the importance is reached."""

from __future__ import annotations

import triton
import triton.language as tl

# Below every importance, and still finite: a query without an eligible block must not give NaN.
NOTHING = tl.constexpr(-1.0e30)


@triton.jit
def share_kernel(
    q,
    block_keys,
    table,
    selected,
    taken,
    share,
    scale,
    q_event,
    q_head,
    block_stride,
    block_head,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
    PLACES: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """selected, taken [T, G, N]. One program is ``QUERIES`` queries and one key/value head."""
    number, group = tl.program_id(0) // G, tl.program_id(0) % G
    fields = table + number * 5
    start, length, tile = tl.load(fields), tl.load(fields + 1), tl.load(fields + 2)
    if tile * QUERIES >= length:
        return
    query = tile * QUERIES + tl.arange(0, QUERIES)
    inside, event = query < length, (start + query).to(tl.int64)
    column = tl.arange(0, D)[None]
    mean_q = tl.zeros([QUERIES, D], tl.float32)
    for head in tl.static_range(R):
        row = event[:, None] * q_event + (group * R + head) * q_head
        mean_q += tl.load(q + row + column, mask=inside[:, None], other=0.0).to(tl.float32)
    mean_q *= scale / R

    # Softmax over the eligible blocks, a tile at a time.
    complete = length // S
    own = tl.where(inside, query // S, 0)
    reach = tl.minimum(tl.max(own, 0), complete) if CAUSAL else complete
    keys = block_keys + tl.load(fields + 4).to(tl.int64) * block_stride + group * block_head
    top, total = tl.full([QUERIES], NOTHING, tl.float32), tl.zeros([QUERIES], tl.float32)
    for low in range(0, reach, BLOCKS):
        block = low + tl.arange(0, BLOCKS)
        address = keys + (block * block_stride)[:, None] + column
        tile_k = tl.load(address, mask=(block < reach)[:, None], other=0.0).to(tl.float32)
        scores = tl.dot(mean_q, tl.trans(tile_k), input_precision=PRECISION)
        eligible = (block < reach)[None] & (block[None] != own[:, None])
        if CAUSAL:
            eligible &= block[None] < own[:, None]
        scores = tl.where(eligible, scores, NOTHING)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.where(eligible, tl.exp(scores - higher[:, None]), 0.0)
        total = total * tl.exp(top - higher) + tl.sum(weights, 1)
        top = higher
    # Where nothing is eligible, nothing is chosen either.
    total = tl.where(total > 0.0, total, 1.0)

    place = tl.arange(0, PLACES)[None]
    chosen = selected + (event * G + group) * N
    blocks = tl.load(chosen[:, None] + place, mask=inside[:, None] & (place < N), other=-1)
    shares = tl.zeros([QUERIES, PLACES], tl.float32)
    for other in range(N):
        block = tl.load(chosen + other, mask=inside, other=-1)
        address = keys + (block * block_stride)[:, None] + column
        key = tl.load(address, mask=(block >= 0)[:, None], other=0.0).to(tl.float32)
        score = tl.where(block >= 0, tl.sum(mean_q * key, 1) - top, 0.0)
        found = tl.where(block >= 0, tl.exp(score) / total, 0.0)
        shares = tl.where(place == other, found[:, None], shares)
    # What is taken before each: more important blocks, and of equal ones those that come earlier.
    before = tl.zeros([QUERIES, PLACES], tl.float32)
    for other in range(N):
        found = tl.sum(tl.where(place == other, shares, 0.0), 1)[:, None]
        is_first = (found > shares) | ((found == shares) & (other < place))
        before += tl.where(is_first, found, 0.0)
    is_taken = (blocks >= 0) & (before < share)
    rank = tl.cumsum(is_taken.to(tl.int32), 1) - 1
    count = tl.sum(is_taken.to(tl.int32), 1)[:, None]
    address = taken + (event * G + group)[:, None] * N
    tl.store(address + rank, blocks, mask=is_taken)
    tl.store(address + place, -1, mask=inside[:, None] & (place >= count) & (place < N))
