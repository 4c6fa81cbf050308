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
        attend(own_views(batch.pattern, problem.k, problem, group, at, keys),
               own_views(batch.pattern, problem.v, problem, group, at, values), own, own_top,
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
            batch, at, chunk, lane, group, [&](int slot, int64_t keys, Mask inside) {
                Vector *score = chosen_scores + slot * R;
                dot_keys(batch.k.at(group, keys), query, score);
                for (int r = 0; r < R; r++) {
                    score[r] = inside ? score[r] * scale : every(HIDDEN);
                    top[r] = larger(top[r], score[r]);
                }
            });
        float shift[R];
        for (int r = 0; r < R; r++) {
            chosen_top[r][lane] = largest(top[r]);
            // An event may see none of them: no weights then, not equal ones.
            shift[r] = chosen_top[r][lane] > HIDDEN ? chosen_top[r][lane] : 0;
        }
        for (int slot = 0; slot < count; slot++)
            for (int r = 0; r < R; r++)
                sum[r] += chosen_scores[slot * R + r] =
                    exp2(chosen_scores[slot * R + r] - shift[r]);
        for (int r = 0; r < R; r++) chosen_sum[r][lane] = total(sum[r]);
        each_selected(batch, at, chunk, lane, group, [&](int slot, int64_t keys, Mask) {
            add_rows(batch.rows.at(group, keys), chosen_scores + slot * R, out);
        });
    }

    void finish(int r) {
        Parts share;
        Vector lse[2];
        if (problem.is_union)
            unite(r, share, lse);
        else
            weigh(r, share, lse);
        float other_share[LANES], kept[2][LANES];
        store(other_share, share.selected);
        store(kept[0], lse[0]);
        store(kept[1], lse[1]);
        Vector *const both = near + r * D;
        for (int d = 0; d < D; d++) both[d] = both[d] * share.near + own[r * D + d] * share.own;
        const float *together = (const float *)both;
        for (int lane = 0; lane < at.events(); lane++) {
            const int64_t place = (at.row + lane) * heads + group * R + r;
            const float *other = (const float *)(selected + (lane * R + r) * ROW_VECTORS);
            float *out = problem.out + place * D;
            for (int d = 0; d < D; d++)
                out[d] = together[d * LANES + lane] + other_share[lane] * other[d];
            for (int path = 0; path < 2; path++)
                problem.lse[path * problem.rows * heads + place] = kept[path][lane];
        }
    }

  private:
    // What the sums of the three parts count in the output.
    struct Parts {
        Vector near, own, selected;
    };

    // Numbers of the events for one head, a lane each, of [T, H, per].
    Vector numbers(const float *x, int r, int per) const {
        Vector result = {};
        for (int lane = 0; lane < at.events(); lane++)
            result[lane] = x[((at.row + lane) * heads + group * R + r) * per];
        return result;
    }

    // Joins the parts of the long-term softmax, and both paths by the gates.
    void weigh(int r, Parts &share, Vector *lse) const {
        const Vector other_top = load(chosen_top[r]), top = larger(own_top[r], other_top);
        const Vector own_part = exp2(own_top[r] - top), other_part = exp2(other_top - top);
        const Vector sum = own_part * own_sum[r] + other_part * load(chosen_sum[r]);
        const Vector gate = numbers(problem.gates, r, 2);
        share = {numbers(problem.gates + 1, r, 2) / near_sum[r], own_part * gate / sum,
                 other_part * gate / sum};
        lse[0] = top + log2(sum);
        lse[1] = near_top[r] + log2(near_sum[r]);
    }

    // Joins the parts of the one softmax.
    void unite(int r, Parts &share, Vector *lse) const {
        const Vector bias = numbers(problem.gates, r, 1) * LOG2_E, first = near_top[r] + bias;
        const Vector other_top = load(chosen_top[r]);
        const Vector top = larger(first, larger(own_top[r], other_top));
        share = {exp2(first - top), exp2(own_top[r] - top), exp2(other_top - top)};
        const Vector sum = share.near * near_sum[r] + share.own * own_sum[r] +
                           share.selected * load(chosen_sum[r]);
        share = {share.near / sum, share.own / sum, share.selected / sum};
        lse[0] = top + log2(sum);
        lse[1] = lse[0] - bias;
    }

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
