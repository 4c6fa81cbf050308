// Products of small matrices, in tiles that the registers hold.
#pragma once

#include "vectors.h"

constexpr int TILE_ROWS = 4, TILE_VECTORS = 2, TILE_COLUMNS = TILE_VECTORS * LANES;

// A factor whose element (row, i) is at first[row * row_step + i * step].
struct Factor {
    const float *first;
    int64_t row_step, step;
};

// to [TILE_ROWS, N vectors] = a [TILE_ROWS, depth] times b [depth, N vectors], or that added to it.
template <int N>
static inline void multiply_tile(
    const Factor &a, const float *b, int64_t b_step, int64_t depth, float *to, int64_t to_step,
    bool adds
) {
    Vector sum[TILE_ROWS][N];
    for (int row = 0; row < TILE_ROWS; row++)
        for (int i = 0; i < N; i++)
            sum[row][i] = adds ? load(to + row * to_step + i * LANES) : Vector{};
    for (int64_t each = 0; each < depth; each++) {
        Vector x[N];
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) x[i] = load(b + each * b_step + i * LANES);
#pragma GCC unroll 4
        for (int row = 0; row < TILE_ROWS; row++) {
            const float factor = a.first[row * a.row_step + each * a.step];
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) sum[row][i] += x[i] * factor;
        }
    }
    for (int row = 0; row < TILE_ROWS; row++)
        for (int i = 0; i < N; i++) store(to + row * to_step + i * LANES, sum[row][i]);
}

// The same for any whole number of vectors in a row.
static inline void multiply_rows(
    const Factor &a, const float *b, int64_t b_step, int64_t depth, float *to, int64_t to_step,
    int64_t columns, bool adds = false
) {
    int64_t first = 0;
    for (; first + TILE_COLUMNS <= columns; first += TILE_COLUMNS)
        multiply_tile<TILE_VECTORS>(a, b + first, b_step, depth, to + first, to_step, adds);
    for (; first < columns; first += LANES)
        multiply_tile<1>(a, b + first, b_step, depth, to + first, to_step, adds);
}
