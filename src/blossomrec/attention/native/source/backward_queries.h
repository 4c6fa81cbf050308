// Gradients of the queries and gates of one chunk and group.
#pragma once

#include "selected.h"

struct QueryScratch {
    Vector *sums;              // gradients of q, [R, d], lanes are events
    Vector *selected;          // the same, [LANES, R, ROW]
    Vector *weights, *slopes;  // [keys, R], lanes are events: of near keys, then of own ones
    Vector *chosen_weights, *chosen_slopes;  // [chunks of the selected blocks, R], lanes are keys
    float *key_strips, *value_strips;
    View *keys_seen, *values_seen;
    int64_t used;

    QueryScratch(const Problem &problem, const Pattern &pattern, Vector *from) {
        const int64_t keys = pattern.most_views() + MOST_OWN;
        const int64_t views_room = keys * sizeof(View) / sizeof(Vector) + 1;
        Vector *next = from;
        auto take = [&](int64_t vectors) { return (next += vectors) - vectors; };
        sums = take(R * D);
        selected = take(LANES * R * ROW_VECTORS);
        weights = take(keys * R);
        slopes = take(keys * R);
        chosen_weights = take(most_selected(problem) * R);
        chosen_slopes = take(most_selected(problem) * R);
        key_strips = (float *)take(pattern.strip_room(D));
        value_strips = (float *)take(pattern.strip_room(D));
        keys_seen = (View *)take(views_room);
        values_seen = (View *)take(views_room);
        used = next - from;
    }

    static int64_t room(const Problem &problem, const Pattern &pattern) {
        return QueryScratch(problem, pattern, nullptr).used;
    }
};

static void backward_queries_tile(
    const Batch &batch, int64_t chunk, int64_t group, Vector *room
) {
    const Problem &problem = batch.problem;
    const Chunk &at = batch.chunks[chunk];
    const QueryScratch scratch(problem, batch.pattern, room);
    const int64_t heads = problem.heads(), groups = problem.groups;
    const float scale = problem.scale();
    float *columns = batch.queries.at(group, chunk);
    const float *q = columns, *grad = columns + GRAD * LANES;
    memset((void *)scratch.sums, 0, sizeof(Vector) * (R * D + LANES * R * ROW_VECTORS));

    // Of the long-term and the short-term path; weights vanish where no event is.
    float normaliser[2][R][LANES], gate[2][R][LANES], mean[2][R][LANES];
    for (int path = 0; path < 2; path++)
        for (int r = 0; r < R; r++)
            for (int lane = 0; lane < LANES; lane++) {
                const int64_t place = (at.row + lane) * heads + group * R + r;
                const bool event = lane < at.events();
                normaliser[path][r][lane] =
                    event ? problem.normalisers[path * problem.rows * heads + place] : -HIDDEN;
                gate[path][r][lane] = event ? problem.gates[place * 2 + path] : 0;
            }

    // Weights, their derivatives by the scores but for the mean, and the mean.
    auto weigh = [&](int path, const Views &keys, const Views &values, Vector *weights, Vector *slopes) {
        Vector sum[R] = {};
        score(q, keys, scale, weights);
        for (int key = 0; key < keys.count; key++) {
            dot(grad, values.view[key], key < values.shifted, slopes + key * R);
            for (int r = 0; r < R; r++) {
                const Vector weight = exp2(weights[key * R + r] - load(normaliser[path][r]));
                weights[key * R + r] = weight;
                sum[r] += weight * slopes[key * R + r];
            }
        }
        for (int r = 0; r < R; r++) store(mean[path][r], sum[r]);
    };
    auto descend = [&](int path, const Views &keys, Vector *weights, const Vector *slopes) {
        for (int key = 0; key < keys.count; key++)
            for (int r = 0; r < R; r++)
                weights[key * R + r] *= load(gate[path][r]) *
                                        (slopes[key * R + r] - load(mean[path][r]));
        add(keys, weights, scratch.sums);
    };
    const Views near = near_views(batch.pattern, batch.k, problem.k, groups, group, chunk, at,
                                  scratch.key_strips, scratch.keys_seen);
    weigh(1, near,
          near_views(batch.pattern, batch.v, problem.v, groups, group, chunk, at,
                     scratch.value_strips, scratch.values_seen),
          scratch.weights, scratch.slopes);
    descend(1, near, scratch.weights, scratch.slopes);
    const Views own = own_views(problem.causal, problem.k, groups, group, at, scratch.keys_seen);
    weigh(0, own, own_views(problem.causal, problem.v, groups, group, at, scratch.values_seen),
          scratch.weights, scratch.slopes);

    for (int lane = 0; lane < at.events(); lane++) {
        const int64_t row = at.row + lane, first = (row * heads + group * R) * D;
        Vector *weights = scratch.chosen_weights, *slopes = scratch.chosen_slopes, sum[R] = {};
        const int count = each_selected(
            problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask inside) {
                dot_keys(batch.k.at(group, keys), problem.q + first, weights + slot * R);
                dot_keys(batch.v.at(group, keys), problem.grad + first, slopes + slot * R);
                for (int r = 0; r < R; r++) {
                    const Vector weight =
                        exp2(weights[slot * R + r] * scale - normaliser[0][r][lane]);
                    weights[slot * R + r] = inside ? weight : Vector{};
                    sum[r] += weights[slot * R + r] * slopes[slot * R + r];
                }
            });
        for (int r = 0; r < R; r++) mean[0][r][lane] += total(sum[r]);
        for (int slot = 0; slot < count; slot++)
            for (int r = 0; r < R; r++)
                weights[slot * R + r] *= gate[0][r][lane] *
                                         (slopes[slot * R + r] - mean[0][r][lane]);
        each_selected(problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask) {
            add_rows(batch.rows.at(group, keys), weights + slot * R,
                     scratch.selected + lane * R * ROW_VECTORS);
        });
    }
    descend(0, own, scratch.weights, scratch.slopes);

    const float root = 1 / sqrtf((float)D);
    for (int r = 0; r < R; r++) {
        store(columns + (NORMALISER + r) * LANES, load(normaliser[1][r]));
        store(columns + (GATE + r) * LANES, load(gate[1][r]));
        store(columns + (MEAN + r) * LANES, load(mean[1][r]));
        const float *together = (const float *)(scratch.sums + r * D);
        for (int lane = 0; lane < at.events(); lane++) {
            const int64_t place = (at.row + lane) * heads + group * R + r;
            const float *selected = (const float *)(scratch.selected + (lane * R + r) * ROW_VECTORS);
            for (int d = 0; d < D; d++)
                problem.grad_q[place * D + d] = root * (together[d * LANES + lane] + selected[d]);
            for (int path = 0; path < 2; path++)
                problem.grad_gates[place * 2 + path] = mean[path][r][lane];
        }
    }
}
