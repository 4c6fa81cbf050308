// Keys of the selected blocks, which every event has its own of: here the lanes are keys.
#pragma once

#include "batch.h"

// The selected blocks of one event and group; -1 ends nothing, it may stand anywhere.
static inline const int32_t *selection(const Problem &problem, int64_t row, int64_t group) {
    return problem.selected + (row * problem.groups + group) * problem.top_n;
}

// Calls use(slot, chunk, seen) for the chunks of the selected blocks of a chunk's event; of a union,
// its near keys are not seen there.
template <class Use>
static inline int each_selected(const Batch &batch, const Chunk &at, int64_t chunk, int lane,
                                int64_t group, Use use) {
    const Problem &problem = batch.problem;
    const int32_t *chosen = selection(problem, at.row + lane, group);
    const int64_t first_chunk = chunk - at.position / LANES;
    const Mask position = every(at.position + lane);
    int slot = 0;
    for (int64_t i = 0; i < problem.top_n; i++) {
        if (chosen[i] < 0) continue;
        const BlockChunks block(chosen[i]);
        for (int32_t each = block.first; each <= block.last; each++) {
            Mask seen = BlockChunks::inside(chosen[i], each);
            if (problem.is_union)
                seen &= ~batch.pattern.sees(position, lane_numbers() + each * LANES, at.length);
            use(slot++, first_chunk + each, seen);
        }
    }
    return slot;
}

static inline int most_selected(const Problem &problem) {
    return problem.top_n * BlockChunks::MOST;
}

// sums[r] = products of the columns x, [d, LANES], with R heads of one event.
static inline void dot_keys(const float *x, const float *heads, Vector *sums) {
    Vector sum[R] = {};
#pragma GCC unroll 8
    for (int d = 0; d < D; d++) {
        const Vector column = load(x + d * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r] += column * heads[r * D + d];
    }
    for (int r = 0; r < R; r++) sums[r] = sum[r];
}

// sums [R, ROW] += weights, of each of LANES rows and R heads, times the rows.
static inline void add_rows(const float *rows, const Vector *weights, Vector *sums) {
    const float *weight = (const float *)weights;
    for (int vector = 0; vector < ROW_VECTORS; vector++) {
        Vector sum[R];
        for (int r = 0; r < R; r++) sum[r] = sums[r * ROW_VECTORS + vector];
#pragma GCC unroll 16
        for (int lane = 0; lane < LANES; lane++) {
            const Vector x = load(rows + lane * ROW + vector * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) sum[r] += x * weight[r * LANES + lane];
        }
        for (int r = 0; r < R; r++) sums[r * ROW_VECTORS + vector] = sum[r];
    }
}
