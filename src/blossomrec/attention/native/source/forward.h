// Output and normalisers of one chunk and group.
#pragma once

#include "selected.h"

struct ForwardScratch {
    Vector *near, *own;       // sums of values, [R, d], lanes are events
    Vector *selected;         // the same, [LANES, R, ROW]
    Vector *scores;           // [keys, R], lanes are events
    Vector *chosen_scores;    // [chunks of the selected blocks, R], lanes are keys
    float *key_strips, *value_strips;
    View *keys_seen, *values_seen;
    int64_t used;

    ForwardScratch(const Problem &problem, const Pattern &pattern, Vector *from) {
        const int64_t keys = pattern.most_views() + MOST_OWN;
        const int64_t views_room = keys * sizeof(View) / sizeof(Vector) + 1;
        Vector *next = from;
        auto take = [&](int64_t vectors) { return (next += vectors) - vectors; };
        near = take(R * D);
        own = take(R * D);
        selected = take(LANES * R * ROW_VECTORS);
        scores = take(keys * R);
        chosen_scores = take(most_selected(problem) * R);
        key_strips = (float *)take(pattern.strip_room(D));
        value_strips = (float *)take(pattern.strip_room(D));
        keys_seen = (View *)take(views_room);
        values_seen = (View *)take(views_room);
        used = next - from;
    }

    static int64_t room(const Problem &problem, const Pattern &pattern) {
        return ForwardScratch(problem, pattern, nullptr).used;
    }
};

static void forward_tile(const Batch &batch, int64_t chunk, int64_t group, Vector *room) {
    const Problem &problem = batch.problem;
    const Chunk &at = batch.chunks[chunk];
    const ForwardScratch scratch(problem, batch.pattern, room);
    const float *q = batch.queries.at(group, chunk);
    const float scale = problem.scale();
    const int64_t heads = problem.heads(), groups = problem.groups;
    memset((void *)scratch.near, 0, sizeof(Vector) * (2 * R * D + LANES * R * ROW_VECTORS));

    // Of each path and head: the highest score and the sum of the weights relative to it.
    Vector near_top[R], near_sum[R], own_top[R], own_sum[R];
    auto attend = [&](const Views &keys, const Views &values, Vector *out, Vector *top, Vector *sum) {
        score(q, keys, scale, scratch.scores);
        soften(keys.count, scratch.scores, top, sum);
        add(values, scratch.scores, out);
    };
    attend(near_views(batch.pattern, batch.k, problem.k, groups, group, chunk, at,
                      scratch.key_strips, scratch.keys_seen),
           near_views(batch.pattern, batch.v, problem.v, groups, group, chunk, at,
                      scratch.value_strips, scratch.values_seen),
           scratch.near, near_top, near_sum);
    attend(own_views(problem.causal, problem.k, groups, group, at, scratch.keys_seen),
           own_views(problem.causal, problem.v, groups, group, at, scratch.values_seen),
           scratch.own, own_top, own_sum);

    float chosen_top[R][LANES], chosen_sum[R][LANES];
    for (int lane = 0; lane < LANES; lane++)
        for (int r = 0; r < R; r++) chosen_top[r][lane] = HIDDEN, chosen_sum[r][lane] = 0;
    for (int lane = 0; lane < at.events(); lane++) {
        const int64_t row = at.row + lane;
        const float *query = problem.q + (row * heads + group * R) * D;
        Vector *scores = scratch.chosen_scores, top[R], sum[R];
        const int count = each_selected(
            problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask inside) {
                Vector *score = scores + slot * R;
                dot_keys(batch.k.at(group, keys), query, score);
                for (int r = 0; r < R; r++) score[r] = inside ? score[r] * scale : every(HIDDEN);
            });
        if (!count) continue;
        for (int r = 0; r < R; r++) top[r] = scores[r], sum[r] = Vector{};
        for (int slot = 1; slot < count; slot++)
            for (int r = 0; r < R; r++) top[r] = larger(top[r], scores[slot * R + r]);
        for (int r = 0; r < R; r++) chosen_top[r][lane] = largest(top[r]);
        for (int slot = 0; slot < count; slot++)
            for (int r = 0; r < R; r++)
                sum[r] += scores[slot * R + r] = exp2(scores[slot * R + r] - chosen_top[r][lane]);
        for (int r = 0; r < R; r++) chosen_sum[r][lane] = total(sum[r]);
        each_selected(problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask) {
            add_rows(batch.rows.at(group, keys), scores + slot * R,
                     scratch.selected + lane * R * ROW_VECTORS);
        });
    }

    for (int r = 0; r < R; r++) {
        const int64_t head = group * R + r;
        Vector gate[2] = {};
        for (int lane = 0; lane < at.events(); lane++)
            for (int path = 0; path < 2; path++)
                gate[path][lane] = problem.gates[((at.row + lane) * heads + head) * 2 + path];
        const Vector other_top = load(chosen_top[r]), top = larger(own_top[r], other_top);
        const Vector own = exp2(own_top[r] - top), other = exp2(other_top - top);
        const Vector sum = own * own_sum[r] + other * load(chosen_sum[r]);
        const Vector near_share = gate[1] / near_sum[r], own_share = own * gate[0] / sum;
        float other_share[LANES], normaliser[2][LANES];
        store(other_share, other * gate[0] / sum);
        store(normaliser[0], top + log2(sum));
        store(normaliser[1], near_top[r] + log2(near_sum[r]));
        for (int d = 0; d < D; d++)
            scratch.near[r * D + d] = scratch.near[r * D + d] * near_share +
                                      scratch.own[r * D + d] * own_share;
        const float *together = (const float *)(scratch.near + r * D);
        for (int lane = 0; lane < at.events(); lane++) {
            const int64_t place = (at.row + lane) * heads + head;
            const float *selected = (const float *)(scratch.selected + (lane * R + r) * ROW_VECTORS);
            float *out = problem.out + place * D;
            for (int d = 0; d < D; d++)
                out[d] = together[d * LANES + lane] + other_share[lane] * selected[d];
            for (int path = 0; path < 2; path++)
                problem.normalisers[path * problem.rows * heads + place] = normaliser[path][lane];
        }
    }
}
