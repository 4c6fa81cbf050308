// Gradients of one short history and group: its weights are computed again, all at once.
#pragma once

#include "short.h"

struct ShortBackward : ShortHistory {
    float *const keys = arena.take<float>(D * width);
    float *const values = arena.take<float>(D * width);
    float *const key_rows = arena.take<float>(width * ROW);
    // Of keys and values, [width, ROW].
    float *const grad_k = arena.take<float>(width * ROW);
    float *const grad_v = arena.take<float>(width * ROW);
    float *const q = arena.take<float>(MOST_ROWS * ROW);
    float *const grad = arena.take<float>(MOST_ROWS * ROW);
    float *const grad_q = arena.take<float>(MOST_ROWS * ROW);
    // What values get, and the gradients of the scores, [rows, width].
    float *const weights = arena.take<float>(MOST_ROWS * width);
    float *const slopes = arena.take<float>(MOST_ROWS * width);
    float *const near_weights = arena.take<float>(width);

    using ShortHistory::ShortHistory;

    void run() const {
        copy_columns(problem.k, keys);
        copy_columns(problem.v, values);
        copy_rows(problem.k, key_rows);
        memset(grad_k, 0, sizeof(float) * width * ROW);
        memset(grad_v, 0, sizeof(float) * width * ROW);
        each_rows([&](const ShortRows &rows) {
            copy_heads(problem.q, rows, problem.scale(), q);
            copy_heads(problem.grad, rows, 1, grad);
            score(rows, q, keys, weights);
            score(rows, grad, values, slopes);
            for (int row = 0; row < rows.count(); row++) {
                if (row % R == 0) look(rows.event(row), end_of(rows, row + R - 1));
                const int32_t end = end_of(rows, row);
                float *weight = weights + row * width, *slope = slopes + row * width;
                problem.is_union ? unite(weight, slope, end, place(rows, row))
                                 : weigh(weight, slope, end, place(rows, row));
            }
            mix(rows, slopes, key_rows, grad_q);
            const float root = 1 / sqrtf((float)D);
            for (int row = 0; row < rows.count(); row++)
                for (int d = 0; d < D; d++)
                    problem.grad_q[place(rows, row) * D + d] = root * grad_q[row * ROW + d];
            gather(rows, slopes, q, grad_k);
            gather(rows, weights, grad, grad_v);
        });
        for (int32_t key = 0; key < at.length; key++) {
            const int64_t first = ((at.row + key) * problem.groups + group) * D;
            for (int d = 0; d < D; d++) {
                // Queries are scaled to exponents of two.
                problem.grad_k[first + d] = grad_k[key * ROW + d] / LOG2_E;
                problem.grad_v[first + d] = grad_v[key * ROW + d];
            }
        }
    }

  private:
    float lse(int64_t place, int path) const {
        return problem.lse[path * problem.rows * heads + place];
    }

    // Scores and gradients of weights to weights and gradients of scores, by the one softmax.
    void unite(float *weights, float *slopes, int32_t end, int64_t place) const {
        const float far_lse = lse(place, 0), near_lse = lse(place, 1);
        Vector mean = {}, near_mean = {}, near_share = {};
        for (int32_t key = 0; key < end; key += LANES) {
            const Mask near = sees(key, NEAR);
            const Vector score = load(weights + key);
            const Vector seen =
                near ? score - near_lse : (sees(key, FAR) ? score - far_lse : every(HIDDEN));
            const Vector weight = exp2(seen), part = weight * load(slopes + key);
            store(weights + key, weight);
            mean += part;
            near_mean += near ? part : Vector{};
            near_share += near ? weight : Vector{};
        }
        const float whole = total(mean);
        for (int32_t key = 0; key < end; key += LANES)
            store(slopes + key, load(weights + key) * (load(slopes + key) - whole));
        problem.grad_gates[place] = total(near_mean - near_share * whole);
    }

    // The same by both softmaxes and the gates.
    void weigh(float *weights, float *slopes, int32_t end, int64_t place) const {
        const float far_lse = lse(place, 0), near_lse = lse(place, 1);
        Vector far_sum = {}, near_sum = {};
        for (int32_t key = 0; key < end; key += LANES) {
            const Vector score = load(weights + key), slope = load(slopes + key);
            const Vector far = exp2(sees(key, FAR) ? score - far_lse : every(HIDDEN));
            const Vector near = exp2(sees(key, NEAR) ? score - near_lse : every(HIDDEN));
            store(weights + key, far);
            store(near_weights + key, near);
            far_sum += far * slope;
            near_sum += near * slope;
        }
        const float far_mean = total(far_sum), near_mean = total(near_sum);
        const float far_gate = problem.gate(place, 0), near_gate = problem.gate(place, 1);
        for (int32_t key = 0; key < end; key += LANES) {
            const Vector far = load(weights + key) * far_gate;
            const Vector near = load(near_weights + key) * near_gate, slope = load(slopes + key);
            store(weights + key, far + near);
            store(slopes + key, far * (slope - far_mean) + near * (slope - near_mean));
        }
        // The gradients of the gates are the means.
        problem.grad_gates[place * 2] = far_mean;
        problem.grad_gates[place * 2 + 1] = near_mean;
    }

    // Adds the rows [rows, ROW] to their keys [width, ROW], by weights [rows, width].
    void gather(const ShortRows &rows, const float *weights, const float *x, float *to) const {
        const int32_t last = end_of(rows, rows.count() - 1);
        for (int32_t key = 0; key < last; key += TILE_ROWS) {
            // Of events before the tile of the key there are no weights.
            const int32_t before = key / LANES * LANES - rows.first;
            const int first = problem.causal && before > 0 ? before * R : 0;
            if (first >= rows.count()) break;
            multiply_rows({weights + first * width + key, 1, width}, x + first * ROW, ROW,
                          rows.count() - first, to + key * ROW, ROW, ROW, true);
        }
    }
};
