// Gradients of the queries and gates of one chunk and group.
#pragma once

#include "selected.h"

// Keys that events see together, with weights and their gradients: lanes are events, [keys, R].
struct SeenKeys {
    Vector *weights, *slopes;
    View *view;
    Views keys;
};

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
    SeenKeys near = take_seen(), own = take_seen();
    // Weights and their gradients: lanes are keys, [chunks of selected blocks, R].
    Vector *const chosen_weights = arena.take<Vector>(most_selected(problem) * R);
    Vector *const chosen_slopes = arena.take<Vector>(most_selected(problem) * R);
    float *const key_strips = arena.take<float>(batch.pattern.strip_room(D));
    float *const value_strips = arena.take<float>(batch.pattern.strip_room(D));
    View *const values = arena.take<View>(batch.pattern.most_views());
    // Of the long-term and the short-term path; `mean` is of the slopes, by the weights.
    float lse[2][R][LANES], gate[2][R][LANES], mean[2][R][LANES];
    float bias_slope[R][LANES];  // of a union

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
                    gate[path][r][lane] = event ? problem.gate(place, path) : 0;
                }
    }

    // The own block and the selected ones share a softmax, and so the mean; of a union all do.
    void run() {
        near.keys = near_views(batch.pattern, {batch.k, group, chunk, at, key_strips}, problem.k,
                               problem.groups, near.view);
        weigh(1, near,
              near_views(batch.pattern, {batch.v, group, chunk, at, value_strips}, problem.v,
                         problem.groups, values));
        own.keys = own_views(batch.pattern, problem.k, problem, group, at, own.view);
        weigh(0, own, own_views(batch.pattern, problem.v, problem, group, at, values));
        if (problem.is_union)
            for (int r = 0; r < R; r++) store(mean[0][r], load(mean[0][r]) + load(mean[1][r]));
        for (int lane = 0; lane < at.events(); lane++) through_selected(lane);
        if (problem.is_union) unite();
        descend(1, near);
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
            for (int path = 0; path < 2; path++) problem.mean(place, path) = mean[path][r][lane];
            // Of two softmaxes the gates' gradients are the means.
            if (problem.is_union) problem.grad_gates[place] = bias_slope[r][lane];
        }
    }

  private:
    SeenKeys take_seen() {
        const int64_t most = batch.pattern.most_views();
        return {arena.take<Vector>(most * R), arena.take<Vector>(most * R), arena.take<View>(most),
                {}};
    }

    void weigh(int path, const SeenKeys &seen, const Views &values) {
        Vector sum[R] = {};
        score(q, seen.keys, scale, seen.weights);
        for (int key = 0; key < seen.keys.count; key++) {
            dot(grad, values.view[key], key < values.shifted, seen.slopes + key * R);
            for (int r = 0; r < R; r++) {
                const Vector weight = exp2(seen.weights[key * R + r] - load(lse[path][r]));
                seen.weights[key * R + r] = weight;
                sum[r] += weight * seen.slopes[key * R + r];
            }
        }
        for (int r = 0; r < R; r++) store(mean[path][r], sum[r]);
    }

    // The gradient of the bias, from the mean over the near keys; then all keys have one mean.
    void unite() {
        for (int r = 0; r < R; r++) {
            Vector sum = {};
            for (int key = 0; key < near.keys.count; key++) sum += near.weights[key * R + r];
            store(bias_slope[r], load(mean[1][r]) - sum * load(mean[0][r]));
            store(mean[1][r], load(mean[0][r]));
        }
    }

    void descend(int path, const SeenKeys &seen) {
        for (int key = 0; key < seen.keys.count; key++)
            for (int r = 0; r < R; r++)
                seen.weights[key * R + r] *= load(gate[path][r]) *
                                             (seen.slopes[key * R + r] - load(mean[path][r]));
        add(seen.keys, seen.weights, sums);
    }

    void through_selected(int lane) {
        const int64_t row = at.row + lane, first = (row * heads + group * R) * D;
        Vector *const out = selected + lane * R * ROW_VECTORS, sum[R] = {};
        memset((void *)out, 0, sizeof(Vector) * R * ROW_VECTORS);
        const int count = each_selected(
            batch, at, chunk, lane, group, [&](int slot, int64_t keys, Mask inside) {
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
        each_selected(batch, at, chunk, lane, group, [&](int slot, int64_t keys, Mask) {
            add_rows(batch.rows.at(group, keys), chosen_weights + slot * R, out);
        });
    }
};

static void backward_queries_tile(
    const Batch &batch, int64_t chunk, int64_t group, Vector *scratch
) {
    QueryTile tile(batch, chunk, group, scratch);
    tile.start();
    tile.run();
    for (int r = 0; r < R; r++) tile.finish(r);
}
