// What is computed, as the Python side describes it (its class Problem has the same fields).
#pragma once

#include <cmath>

#include "vectors.h"

// Given to the compiler, so that the loops over them unroll.
constexpr int D = HEAD_SIZE, R = HEADS_PER_GROUP, S = BLOCK_SIZE;
// Numbers of a head in a row, padded to whole vectors.
constexpr int ROW_VECTORS = (D + LANES - 1) / LANES, ROW = ROW_VECTORS * LANES;

constexpr float LOG2_E = 1.44269504f;

struct Problem {
    const float *q;            // [T, H, d]
    const float *k, *v;        // [T, G, d]
    const float *block_keys;   // [N, G, d]
    const float *gates;        // [T, H, 2]; of a union the bias, [T, H, 1]
    const int32_t *cu_seqlens; // [B + 1]
    int32_t *selected;         // [T, G, n]
    // [2, T, H], base 2: of the long-term and the short-term softmax; of a union that of the one
    // softmax, and that less the bias, so that weights are made of plain scores along both paths.
    float *lse;
    float *out;                // [T, H, d]
    const float *grad;         // [T, H, d]
    float *grad_q, *grad_k, *grad_v, *grad_gates;
    float *means;              // as gates: of the gradients of the weights, by the weights
    const int64_t *samples;    // [count], packed rows
    float *shares;             // [count, G, blocks], at least those of the longest history
    int64_t rows, histories, groups, top_n, window, sinks, causal, is_union, threads, count, blocks;
    int64_t short_length;      // longest history of which all scores are computed
    int64_t wrong;             // row of the first wrong selection, or the first wrong sample

    float scale() const { return LOG2_E / sqrtf((float)D); }  // scores are exponents of two
    int64_t heads() const { return groups * R; }

    // Weight of a path for a packed row and head; what a union adds is in its lse.
    float gate(int64_t place, int path) const { return is_union ? 1 : gates[place * 2 + path]; }
    float &mean(int64_t place, int path) const {
        return is_union ? means[place] : means[place * 2 + path];
    }
};

enum Status {
    FINE = 0,
    NO_MEMORY = 1,
    WRONG_LENGTHS = 2,
    WRONG_SELECTION = 3,
    WRONG_LESSON = 4,
    FEW_BLOCKS = 5,
};
