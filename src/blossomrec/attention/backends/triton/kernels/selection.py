# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Selection kernel: the best blocks of each query, from a stream of scores that is never stored."""

from __future__ import annotations

import triton
import triton.language as tl

from blossomrec.attention.backends.triton.kernels.tiles import rows_of, tile_of

# Above every block number: the mark of an empty place, made distinct by adding the place.
EMPTY = tl.constexpr(1 << 30)


@triton.jit
def keep_best(best, block, scores, number):
    """Put candidates in the place of worse ones kept so far; equal scores keep the lower block.

    best, block [M, P]: scores and numbers kept, in no order; scores [M, C] of blocks number [1, C],
    which are higher than all kept ones.
    """
    lead, worst = tl.max(scores, 1), tl.min(best, 1)
    while tl.max((lead > worst).to(tl.int32), 0) > 0:
        leader = tl.min(tl.where(scores == lead[:, None], number, EMPTY), 1)
        is_worst = best == worst[:, None]
        leaving = tl.max(tl.where(is_worst, block, -1), 1)
        place = is_worst & (block == leaving[:, None]) & (lead > worst)[:, None]
        best = tl.where(place, lead[:, None], best)
        block = tl.where(place, leader[:, None], block)
        scores = tl.where(number == leader[:, None], float("-inf"), scores)
        lead, worst = tl.max(scores, 1), tl.min(best, 1)
    return best, block


@triton.jit
def selection_kernel(
    q,
    block_keys,
    table,
    selected,
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
    """selected [T, G, N]. One program is ``QUERIES`` queries and one key/value head.

    The scale 1/sqrt(d) is left out: it changes no order.
    """
    number, group = tl.program_id(0) // G, tl.program_id(0) % G
    start, length, tile, _ = tile_of(table, number)
    first = tile * QUERIES
    if first >= length:
        return
    query = first + tl.arange(0, QUERIES)
    inside = query < length
    event = (start + query).to(tl.int64)
    mean_q = tl.zeros([QUERIES, D], tl.float32)
    for head in tl.static_range(R):
        row = event * q_event + (group * R + head) * q_head
        mean_q += rows_of(q, row, inside, 1, D).to(tl.float32)
    mean_q = mean_q / R

    complete = length // S
    own = tl.where(inside, query // S, 0)
    reach = tl.minimum(tl.max(own, 0), complete) if CAUSAL else complete
    keys = block_keys + tl.load(table + number * 5 + 4).to(tl.int64) * block_stride
    keys += group * block_head
    place = tl.arange(0, PLACES)[None]
    # Places beyond N are kept by a score that nothing beats.
    best = tl.where(place < N, float("-inf"), float("inf")) + tl.zeros([QUERIES, 1], tl.float32)
    block = EMPTY + place + tl.zeros([QUERIES, 1], tl.int32)
    for low in range(0, reach, BLOCKS):
        candidate = low + tl.arange(0, BLOCKS)
        tile_k = rows_of(keys, candidate, candidate < reach, block_stride, D).to(tl.float32)
        scores = tl.dot(mean_q, tl.trans(tile_k), input_precision=PRECISION)
        if CAUSAL:
            eligible = candidate[None] < own[:, None]
        else:
            eligible = (candidate < reach)[None] & (candidate[None] != own[:, None])
        scores = tl.where(eligible & inside[:, None], scores, float("-inf"))
        best, block = keep_best(best, block, scores, candidate[None])

    rank = tl.sum((block[:, None, :] < block[:, :, None]).to(tl.int32), 2)
    result = tl.where(block < EMPTY, block, -1)
    address = selected + ((event * G + group) * N)[:, None] + rank
    tl.store(address, result, mask=inside[:, None] & (rank < N))
