// Rotary embedding of whole batches, forward and backward.
#pragma once

#include "problem.h"

struct Rotation {
    const float *x;       // [T, n, d]
    const float *angles;  // [T, 2, pairs], cosine and sine
    float *to;            // [T, n, d]
    int64_t rows, heads, pairs, back, threads;  // back: by the opposite angles
};

constexpr int64_t ROWS_ROTATED = 128;

static void rotate_rows(const Rotation &rotation, int64_t first) {
    const int64_t pairs = rotation.pairs, left = rotation.rows - first;
    const float sign = rotation.back ? -1 : 1;
    for (int64_t row = first; row < first + (left < ROWS_ROTATED ? left : ROWS_ROTATED); row++) {
        const float *cosine = rotation.angles + row * 2 * pairs, *sine = cosine + pairs;
        for (int64_t head = row * rotation.heads; head < (row + 1) * rotation.heads; head++) {
            const float *x = rotation.x + head * D;
            float *to = rotation.to + head * D;
            for (int64_t i = 0; i < pairs; i++) {
                const float turned = sign * sine[i];
                to[i] = x[i] * cosine[i] - x[i + pairs] * turned;
                to[i + pairs] = x[i + pairs] * cosine[i] + x[i] * turned;
            }
            for (int64_t i = 2 * pairs; i < D; i++) to[i] = x[i];
        }
    }
}
