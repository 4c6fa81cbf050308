// Products of rows with the weights of a linear layer.
#pragma once

#include "vectors.h"

// to [rows, count] = x [rows, size] times weights [count, size], and the bias [count] if there is.
static void project(
    const float *x, int64_t rows, int64_t size, const float *weights, const float *bias,
    int64_t count, float *to
) {
    // Weights of so many outputs at once: all rows find them in the nearest cache.
    for (int64_t first = 0; first < count; first += LANES) {
        const int64_t some = count - first < LANES ? count - first : LANES;
        const float *weight[LANES];
        for (int i = 0; i < LANES; i++) weight[i] = weights + (first + (i < some ? i : 0)) * size;
        for (int64_t row = 0; row < rows; row++) {
            const float *from = x + row * size;
            Vector products[LANES] = {};
            int64_t place = 0;
            for (; place + LANES <= size; place += LANES) {
                const Vector numbers = load(from + place);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; i++) products[i] += load(weight[i] + place) * numbers;
            }
            const Vector sums = totals(products);
            for (int i = 0; i < some; i++) {
                float sum = sums[i];
                for (int64_t last = place; last < size; last++) sum += weight[i][last] * from[last];
                to[row * count + first + i] = sum + (bias ? bias[first + i] : 0);
            }
        }
    }
}
