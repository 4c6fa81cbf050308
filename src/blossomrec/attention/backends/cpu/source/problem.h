// What is computed, as the Python side describes it (its class Problem has the same fields).
#pragma once

#include <cmath>

#include "vectors.h"

// Given to the compiler, so that the loops over them unroll.
constexpr int D = HEAD_SIZE, R = HEADS_PER_GROUP, S = BLOCK_SIZE;
// Numbers of a head in a row, padded to whole vectors.
constexpr int ROW_VECTORS = (D + LANES - 1) / LANES, ROW = ROW_VECTORS * LANES;

struct Problem {
    const float *q;            // [T, H, d]
    const float *k, *v;        // [T, G, d]
    const float *block_keys;   // [N, G, d]
    const float *gates;        // [T, H, 2]
    const int32_t *cu_seqlens; // [B + 1]
    int32_t *selected;         // [T, G, n]
    float *lse;        // [2, T, H], base 2: of the long-term and the short-term softmax
    float *out;                // [T, H, d]
    const float *grad;         // [T, H, d]
    float *grad_q, *grad_k, *grad_v, *grad_gates;
    const int64_t *samples;    // [count], packed rows
    float *shares;             // [count, G, blocks], at least those of the longest history
    int64_t rows, histories, groups, top_n, window, sinks, causal, threads, count, blocks;
    int64_t wrong;             // row of the first wrong selection, or the first wrong sample

    float scale() const { return 1.44269504f / sqrtf((float)D); }  // scores are exponents of two
    int64_t heads() const { return groups * R; }
};

enum Status {
    FINE = 0,
    NO_MEMORY = 1,
    WRONG_LENGTHS = 2,
    WRONG_SELECTION = 3,
    WRONG_LESSON = 4,
    FEW_BLOCKS = 5,
};
