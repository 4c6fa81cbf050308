// What attention the blocks of a history get from one of its events, to teach the selector.
#pragma once

#include "chunks.h"

struct SampleScratch {
    const Chunks &chunks;
    Arena arena;
    float *const query = arena.take<float>(R * D);  // scaled
    // Of each head and chunk of the history.
    Vector *const score = arena.take<Vector>(R * (chunks.longest / LANES + 1));
    float *const sum = arena.take<float>(chunks.longest / S + LANES);  // of each block

    SampleScratch(const Chunks &chunks, Vector *scratch) : chunks(chunks), arena{scratch} {}
};

// The chunk that holds a packed row.
static int64_t chunk_of(const Chunks &chunks, int64_t row) {
    int64_t low = 0, high = chunks.count;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (chunks[middle].row <= row ? low : high) = middle;
    }
    return low;
}

// Shares of the eligible blocks, mean over the heads of a group; zero for all others, and for an
// event that has no two of them to choose from.
static void sample(
    const Problem &problem, const Chunks &chunks, const Columns &keys, int64_t index, int64_t group,
    Vector *room
) {
    float *shares = problem.shares + (index * problem.groups + group) * problem.blocks;
    memset(shares, 0, sizeof(float) * problem.blocks);
    const int64_t row = problem.samples[index], chunk = chunk_of(chunks, row);
    const Chunk &at = chunks[chunk];
    const int32_t position = at.position + (row - at.row), own = position / S;
    const int32_t blocks = at.length / S;
    const int32_t eligible = problem.causal ? own : blocks - (own < blocks);
    const int32_t end = problem.causal ? own : blocks;
    if (eligible < 2) return;

    const SampleScratch scratch(chunks, room);
    const float *query = problem.q + (row * problem.groups + group) * R * D;
    for (int i = 0; i < R * D; i++) scratch.query[i] = query[i] * problem.scale();
    const int64_t first = chunk - at.position / LANES;
    const int32_t count = (end * S + LANES - 1) / LANES;
    Vector top[R];
    for (int r = 0; r < R; r++) top[r] = every(HIDDEN);
    for (int32_t each = 0; each < count; each++) {
        const float *columns = keys.at(group, first + each);
        Vector score[R] = {};
        for (int d = 0; d < D; d++) {
            const Vector x = load(columns + d * LANES);
            for (int r = 0; r < R; r++) score[r] += x * scratch.query[r * D + d];
        }
        const Mask event = lane_numbers() + each * LANES;
        Mask seen = event < end * S;
        if (!problem.causal) seen &= (event < own * S) | (event >= own * S + S);
        for (int r = 0; r < R; r++) {
            score[r] = seen ? score[r] : every(HIDDEN);
            scratch.score[r * count + each] = score[r];
            top[r] = larger(top[r], score[r]);
        }
    }
    for (int r = 0; r < R; r++) {
        const Vector shift = every(largest(top[r]));
        Vector all = {};
        for (int32_t block = 0; block < end; block += LANES) {
            Vector part[LANES] = {};
            for (int i = 0; i < LANES && block + i < end; i++) {
                const BlockChunks where(block + i);
                for (int32_t each = where.first; each <= where.last; each++) {
                    const Vector weight = exp2(scratch.score[r * count + each] - shift);
                    const Mask inside = BlockChunks::inside(block + i, each);
                    part[i] += inside ? weight : Vector{};
                }
            }
            const Vector sums = totals(part);
            store(scratch.sum + block, sums);
            all += sums;
        }
        const float whole = total(all) * R;
        for (int32_t block = 0; block < end; block++) shares[block] += scratch.sum[block] / whole;
    }
}
