// Gradients of the queries and gates of one chunk and group.
#pragma once

#include "selected.h"

struct QueryTile {
    const Batch &batch;
    const Problem &problem;
    const int64_t chunk, group, heads;
    const Chunk &at;
    float *const columns;
    const float *const q, *const grad;
    const float scale;

    Arena arena;
    // Gradients of q: lanes are events, [R, d]; of selected blocks, [LANES, R, ROW].
    Vector *const sums = arena.take<Vector>(R * D);
    Vector *const selected = arena.take<Vector>(LANES * R * ROW_VECTORS);
    // Weights and their gradients: lanes are events, [keys, R]; lanes are keys, [chunks, R].
    Vector *const weights = arena.take<Vector>(batch.pattern.most_views() * R);
    Vector *const slopes = arena.take<Vector>(batch.pattern.most_views() * R);
    Vector *const chosen_weights = arena.take<Vector>(most_selected(problem) * R);
    Vector *const chosen_slopes = arena.take<Vector>(most_selected(problem) * R);
    float *const key_strips = arena.take<float>(batch.pattern.strip_room(D));
    float *const value_strips = arena.take<float>(batch.pattern.strip_room(D));
    View *const keys = arena.take<View>(batch.pattern.most_views());
    View *const values = arena.take<View>(batch.pattern.most_views());
    // Of the long-term and the short-term path; `mean` is of the slopes, by the weights.
    float lse[2][R][LANES], gate[2][R][LANES], mean[2][R][LANES];

    QueryTile(const Batch &batch, int64_t chunk, int64_t group, Vector *scratch)
        : batch(batch), problem(batch.problem), chunk(chunk), group(group), heads(problem.heads()),
          at(batch.chunks[chunk]), columns(batch.queries.at(group, chunk)), q(columns),
          grad(columns + GRAD * LANES), scale(problem.scale()), arena{scratch} {}

    void start() {
        memset((void *)sums, 0, sizeof(Vector) * R * D);
        for (int path = 0; path < 2; path++)
            for (int r = 0; r < R; r++)
                for (int lane = 0; lane < LANES; lane++) {
                    const int64_t place = (at.row + lane) * heads + group * R + r;
                    const bool event = lane < at.events();
                    // Weights vanish where no event is.
                    lse[path][r][lane] =
                        event ? problem.lse[path * problem.rows * heads + place] : -HIDDEN;
                    gate[path][r][lane] = event ? problem.gates[place * 2 + path] : 0;
                }
    }

    void near() {
        const Views seen = near_views(batch.pattern, {batch.k, group, chunk, at, key_strips},
                                      problem.k, problem.groups, keys);
        weigh(1, seen,
              near_views(batch.pattern, {batch.v, group, chunk, at, value_strips}, problem.v,
                         problem.groups, values));
        descend(1, seen);
    }

    // The own block and the selected ones share a softmax, and so the mean.
    void far() {
        const Views own = own_views(problem.causal, problem.k, problem.groups, group, at, keys);
        weigh(0, own, own_views(problem.causal, problem.v, problem.groups, group, at, values));
        for (int lane = 0; lane < at.events(); lane++) through_selected(lane);
        descend(0, own);
    }

    void finish(int r) const {
        const float root = 1 / sqrtf((float)D);
        store(columns + (LSE + r) * LANES, load(lse[1][r]));
        store(columns + (GATE + r) * LANES, load(gate[1][r]));
        store(columns + (MEAN + r) * LANES, load(mean[1][r]));
        const float *together = (const float *)(sums + r * D);
        for (int lane = 0; lane < at.events(); lane++) {
            const int64_t place = (at.row + lane) * heads + group * R + r;
            const float *other = (const float *)(selected + (lane * R + r) * ROW_VECTORS);
            for (int d = 0; d < D; d++)
                problem.grad_q[place * D + d] = root * (together[d * LANES + lane] + other[d]);
            for (int path = 0; path < 2; path++)
                problem.grad_gates[place * 2 + path] = mean[path][r][lane];
        }
    }

  private:
    void weigh(int path, const Views &keys, const Views &values) {
        Vector sum[R] = {};
        score(q, keys, scale, weights);
        for (int key = 0; key < keys.count; key++) {
            dot(grad, values.view[key], key < values.shifted, slopes + key * R);
            for (int r = 0; r < R; r++) {
                const Vector weight = exp2(weights[key * R + r] - load(lse[path][r]));
                weights[key * R + r] = weight;
                sum[r] += weight * slopes[key * R + r];
            }
        }
        for (int r = 0; r < R; r++) store(mean[path][r], sum[r]);
    }

    void descend(int path, const Views &keys) {
        for (int key = 0; key < keys.count; key++)
            for (int r = 0; r < R; r++)
                weights[key * R + r] *= load(gate[path][r]) *
                                        (slopes[key * R + r] - load(mean[path][r]));
        add(keys, weights, sums);
    }

    void through_selected(int lane) {
        const int64_t row = at.row + lane, first = (row * heads + group * R) * D;
        Vector *const out = selected + lane * R * ROW_VECTORS, sum[R] = {};
        memset((void *)out, 0, sizeof(Vector) * R * ROW_VECTORS);
        const int count = each_selected(
            problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask inside) {
                Vector *weight = chosen_weights + slot * R, *slope = chosen_slopes + slot * R;
                dot_keys(batch.k.at(group, keys), problem.q + first, weight);
                dot_keys(batch.v.at(group, keys), problem.grad + first, slope);
                for (int r = 0; r < R; r++) {
                    const Vector seen = exp2(weight[r] * scale - lse[0][r][lane]);
                    weight[r] = inside ? seen : Vector{};
                    sum[r] += weight[r] * slope[r];
                }
            });
        for (int r = 0; r < R; r++) mean[0][r][lane] += total(sum[r]);
        for (int slot = 0; slot < count; slot++)
            for (int r = 0; r < R; r++)
                chosen_weights[slot * R + r] *=
                    gate[0][r][lane] * (chosen_slopes[slot * R + r] - mean[0][r][lane]);
        each_selected(problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask) {
            add_rows(batch.rows.at(group, keys), chosen_weights + slot * R, out);
        });
    }
};

static void backward_queries_tile(
    const Batch &batch, int64_t chunk, int64_t group, Vector *scratch
) {
    QueryTile tile(batch, chunk, group, scratch);
    tile.start();
    tile.near();
    tile.far();
    for (int r = 0; r < R; r++) tile.finish(r);
}
