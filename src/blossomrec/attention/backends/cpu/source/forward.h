// Output and lse of one chunk and group.
#pragma once

#include "selected.h"

struct ForwardTile {
    const Batch &batch;
    const Problem &problem;
    const int64_t chunk, group, heads;
    const Chunk &at;
    const float *const q;
    const float scale;

    Arena arena;
    // Sums of values, by weights relative to the highest score: lanes are events, [R, d].
    Vector *const near = arena.take<Vector>(R * D), *const own = arena.take<Vector>(R * D);
    // The same of selected blocks, [LANES, R, ROW].
    Vector *const selected = arena.take<Vector>(LANES * R * ROW_VECTORS);
    // Scores: lanes are events, [keys, R]; lanes are keys, [chunks of selected blocks, R].
    Vector *const scores = arena.take<Vector>(batch.pattern.most_views() * R);
    Vector *const chosen_scores = arena.take<Vector>(most_selected(problem) * R);
    float *const key_strips = arena.take<float>(batch.pattern.strip_room(D));
    float *const value_strips = arena.take<float>(batch.pattern.strip_room(D));
    View *const keys = arena.take<View>(batch.pattern.most_views());
    View *const values = arena.take<View>(batch.pattern.most_views());
    // Highest scores and sums of weights, lanes are events.
    Vector near_top[R], near_sum[R], own_top[R], own_sum[R];
    float chosen_top[R][LANES], chosen_sum[R][LANES];

    ForwardTile(const Batch &batch, int64_t chunk, int64_t group, Vector *scratch)
        : batch(batch), problem(batch.problem), chunk(chunk), group(group), heads(problem.heads()),
          at(batch.chunks[chunk]), q(batch.queries.at(group, chunk)), scale(problem.scale()),
          arena{scratch} {}

    void attend_near() {
        const int64_t groups = problem.groups;
        attend(near_views(batch.pattern, {batch.k, group, chunk, at, key_strips}, problem.k, groups,
                          keys),
               near_views(batch.pattern, {batch.v, group, chunk, at, value_strips}, problem.v,
                          groups, values),
               near, near_top, near_sum);
    }

    void attend_own() {
        const int64_t groups = problem.groups;
        attend(own_views(problem.causal, problem.k, groups, group, at, keys),
               own_views(problem.causal, problem.v, groups, group, at, values), own, own_top,
               own_sum);
    }

    void attend_selected(int lane) {
        const int64_t row = at.row + lane;
        const float *query = problem.q + (row * heads + group * R) * D;
        Vector *const out = selected + lane * R * ROW_VECTORS;
        memset((void *)out, 0, sizeof(Vector) * R * ROW_VECTORS);
        Vector top[R], sum[R] = {};
        for (int r = 0; r < R; r++) top[r] = every(HIDDEN);
        const int count = each_selected(
            problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask inside) {
                Vector *score = chosen_scores + slot * R;
                dot_keys(batch.k.at(group, keys), query, score);
                for (int r = 0; r < R; r++) {
                    score[r] = inside ? score[r] * scale : every(HIDDEN);
                    top[r] = larger(top[r], score[r]);
                }
            });
        for (int r = 0; r < R; r++) chosen_top[r][lane] = largest(top[r]);
        for (int slot = 0; slot < count; slot++)
            for (int r = 0; r < R; r++)
                sum[r] += chosen_scores[slot * R + r] =
                    exp2(chosen_scores[slot * R + r] - chosen_top[r][lane]);
        for (int r = 0; r < R; r++) chosen_sum[r][lane] = total(sum[r]);
        each_selected(problem, at, chunk, row, group, [&](int slot, int64_t keys, Mask) {
            add_rows(batch.rows.at(group, keys), chosen_scores + slot * R, out);
        });
    }

    // Joins the parts of the long-term softmax, and both paths by the gates.
    void finish(int r) {
        const int64_t head = group * R + r;
        Vector gate[2] = {};
        for (int lane = 0; lane < at.events(); lane++)
            for (int path = 0; path < 2; path++)
                gate[path][lane] = problem.gates[((at.row + lane) * heads + head) * 2 + path];
        const Vector other_top = load(chosen_top[r]), top = larger(own_top[r], other_top);
        const Vector own_part = exp2(own_top[r] - top), other_part = exp2(other_top - top);
        const Vector sum = own_part * own_sum[r] + other_part * load(chosen_sum[r]);
        const Vector near_share = gate[1] / near_sum[r], own_share = own_part * gate[0] / sum;
        float other_share[LANES], lse[2][LANES];
        store(other_share, other_part * gate[0] / sum);
        store(lse[0], top + log2(sum));
        store(lse[1], near_top[r] + log2(near_sum[r]));
        Vector *const both = near + r * D;
        for (int d = 0; d < D; d++) both[d] = both[d] * near_share + own[r * D + d] * own_share;
        const float *together = (const float *)both;
        for (int lane = 0; lane < at.events(); lane++) {
            const int64_t place = (at.row + lane) * heads + head;
            const float *other = (const float *)(selected + (lane * R + r) * ROW_VECTORS);
            float *out = problem.out + place * D;
            for (int d = 0; d < D; d++)
                out[d] = together[d * LANES + lane] + other_share[lane] * other[d];
            for (int path = 0; path < 2; path++)
                problem.lse[path * problem.rows * heads + place] = lse[path][lane];
        }
    }

  private:
    void attend(const Views &keys, const Views &values, Vector *out, Vector *top, Vector *sum) {
        memset((void *)out, 0, sizeof(Vector) * R * D);
        score(q, keys, scale, scores);
        soften(keys.count, scores, top, sum);
        add(values, scores, out);
    }
};

static void forward_tile(const Batch &batch, int64_t chunk, int64_t group, Vector *scratch) {
    ForwardTile tile(batch, chunk, group, scratch);
    tile.attend_near();
    tile.attend_own();
    for (int lane = 0; lane < tile.at.events(); lane++) tile.attend_selected(lane);
    for (int r = 0; r < R; r++) tile.finish(r);
}
