// New events of users whose keys, values and block keys are kept: the causal form, without gradients.
#pragma once

#include "threads.h"
#include "problem.h"

// A user: where its keys and values [held, G, 2d] and block keys [blocks, G, d] are, how many rows
// were held before the new events, how many are new, and the position of row 0.
struct User {
    float *events;
    const float *blocks;
    int64_t held, count, first;
};

struct Step {
    const float *q, *k, *v;    // [t, H, d] and [t, G, d], not yet turned
    const float *gates;        // [t, H, 2]
    const float *frequencies;  // [pairs], by which the first 2 * pairs numbers of a head turn
    const User *users;
    float *out;                // [t, H, d]
    int32_t *selected;         // [t, G, n]
    int64_t rows, count, groups, pairs, top_n, window, sinks, threads;
};

static inline float product(const float *a, const float *b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < D; d++) sum += a[d] * b[d];
    return sum;
}

// Rotary embedding at a position, as rotary.py has it.
struct Turn {
    float cosine[D / 2 + 1], sine[D / 2 + 1];
    const int pairs;

    Turn(const Step &step, int64_t position) : pairs(step.pairs) {
        for (int i = 0; i < pairs; i++) {
            const float angle = (float)position * step.frequencies[i];
            cosine[i] = cosf(angle), sine[i] = sinf(angle);
        }
    }

    void operator()(const float *x, float *to) const {
        for (int i = 0; i < pairs; i++) {
            const float first = x[i], second = x[i + pairs];
            to[i] = first * cosine[i] - second * sine[i];
            to[i + pairs] = second * cosine[i] + first * sine[i];
        }
        for (int i = 2 * pairs; i < D; i++) to[i] = x[i];
    }
};

static void append(const Step &step) {
    int64_t row = 0;
    for (int64_t each = 0; each < step.count; each++) {
        const User &user = step.users[each];
        for (int64_t event = 0; event < user.count; event++, row++) {
            const Turn turn(step, user.first + user.held + event);
            for (int64_t group = 0; group < step.groups; group++) {
                const int64_t place = (row * step.groups + group) * D;
                float *to = user.events + ((user.held + event) * step.groups + group) * 2 * D;
                turn(step.k + place, to);
                memcpy(to + D, step.v + place, sizeof(float) * D);
            }
        }
    }
}

constexpr int SCORED_AT_ONCE = 64;

// Products of a query with `count` block keys, at most SCORED_AT_ONCE, `stride` numbers apart.
static inline void score_blocks(
    const float *keys, int64_t stride, const float *q, int count, float *scores
) {
    int first = 0;
    if (D % LANES == 0)
        for (; first + LANES <= count; first += LANES) {
            Vector products[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const float *key = keys + (first + i) * stride;
                products[i] = load(key) * load(q);
                for (int d = LANES; d < D; d += LANES) products[i] += load(key + d) * load(q + d);
            }
            store(scores + first, totals(products));
        }
    for (; first < count; first++) scores[first] = product(keys + first * stride, q);
}

// The most important of the blocks before `own`, rising; how many there are.
static int64_t choose(
    const Step &step, const User &user, const float *q, int64_t group, int64_t own, float *best,
    int32_t *chosen
) {
    const int64_t count = step.top_n, groups = step.groups;
    if (own <= count) {
        for (int64_t block = 0; block < own; block++) chosen[block] = block;
        return own;
    }
    float mean[D] = {}, score[SCORED_AT_ONCE];
    for (int r = 0; r < R; r++)
        for (int d = 0; d < D; d++) mean[d] += q[r * D + d] / R;
    for (int64_t place = 0; place < count; place++) best[place] = -INFINITY, chosen[place] = -1;
    const float *keys = user.blocks + group * D;
    for (int64_t block = 0; block < own; block += SCORED_AT_ONCE) {
        const int some = own - block < SCORED_AT_ONCE ? own - block : SCORED_AT_ONCE;
        score_blocks(keys + block * groups * D, groups * D, mean, some, score);
        for (int i = 0; i < some; i++) {
            // Most have none that is needed.
            if (i % LANES == 0)
                while (i + LANES <= some && !any(load(score + i) > best[count - 1])) i += LANES;
            if (i == some) break;
            if (!(score[i] > best[count - 1])) continue;
            int64_t place = count - 1;
            for (; place && score[i] > best[place - 1]; place--)
                best[place] = best[place - 1], chosen[place] = chosen[place - 1];
            best[place] = score[i], chosen[place] = block + i;
        }
    }
    int64_t found = 0;
    for (; found < count && chosen[found] >= 0; found++) {
        const int32_t block = chosen[found];
        int64_t to = found;
        for (; to && chosen[to - 1] > block; to--) chosen[to] = chosen[to - 1];
        chosen[to] = block;
    }
    return found;
}

static inline int64_t most_far(const Step &step) { return (step.top_n + 1) * S; }
static inline int64_t most_near(const Step &step) { return step.window + 64 + step.sinks; }

static int64_t step_room(const Step &step) {
    const int64_t keys = most_far(step) + most_near(step) + 2 * LANES;
    return (keys * (R + 2) + 2 * step.top_n) / LANES + 4 + R;
}

// Adds share * softmax(q . key) value over the keys, [R, d]. `rows` are those of the keys.
static void attend_keys(
    const Step &step, const float *events, const float *q, const int64_t *rows, int64_t count,
    const float *gates, float *scores, float *out
) {
    const int64_t width = 2 * D * step.groups, padded = (count + LANES - 1) / LANES * LANES;
    const float scale = 1.44269504f / sqrtf((float)D);
    for (int64_t key = 0; key < count; key++)
        for (int r = 0; r < R; r++)
            scores[r * padded + key] = product(events + rows[key] * width, q + r * D) * scale;
    for (int r = 0; r < R; r++) {
        float *score = scores + r * padded;
        for (int64_t key = count; key < padded; key++) score[key] = HIDDEN;
        Vector top = load(score), sum = {};
        for (int64_t key = LANES; key < padded; key += LANES) top = larger(top, load(score + key));
        const float highest = largest(top);
        for (int64_t key = 0; key < padded; key += LANES) {
            const Vector weight = exp2(load(score + key) - highest);
            store(score + key, weight);
            sum += weight;
        }
        const float share = gates[r * 2] / total(sum);
        for (int64_t key = 0; key < count; key++) score[key] *= share;
    }
    for (int64_t key = 0; key < count; key++) {
        const float *value = events + rows[key] * width + D;
        for (int r = 0; r < R; r++) {
            const float weight = scores[r * padded + key];
#pragma omp simd
            for (int d = 0; d < D; d++) out[r * D + d] += weight * value[d];
        }
    }
}

static void step_event(const Step &step, const User &user, int64_t event, int64_t row, Vector *room) {
    const int64_t groups = step.groups, at = user.held + event, own = at / S;
    int64_t *far = (int64_t *)room, *near = far + most_far(step);
    float *best = (float *)(near + most_near(step)), *scores = best + 2 * step.top_n;
    const Turn turn(step, user.first + at);
    float q[R * D];
    // Alike for all groups: the keys of the pattern, then the sinks that it does not lead to.
    int64_t near_count = 0;
    for (int64_t back = 0; back < step.window && back <= at; back++) near[near_count++] = at - back;
    for (int64_t back = 1; back <= at; back *= 2)
        if (back >= step.window) near[near_count++] = at - back;
    for (int64_t sink = user.first; sink < step.sinks && sink - user.first <= at; sink++) {
        const int64_t back = at - (sink - user.first);
        if (back >= step.window && (back & (back - 1))) near[near_count++] = at - back;
    }
    for (int64_t group = 0; group < groups; group++) {
        const int64_t place = (row * groups + group) * R;
        const float *gates = step.gates + place * 2;
        for (int r = 0; r < R; r++) turn(step.q + (place + r) * D, q + r * D);
        const float *events = user.events + group * 2 * D;
        int32_t *chosen = step.selected + (row * groups + group) * step.top_n;
        const int64_t blocks = choose(step, user, q, group, own, best, chosen);
        int64_t far_count = 0;
        for (int64_t i = 0; i < blocks; i++)
            for (int64_t key = 0; key < S; key++) far[far_count++] = (int64_t)chosen[i] * S + key;
        for (int64_t key = own * S; key <= at; key++) far[far_count++] = key;
        for (int64_t i = 0; i < blocks; i++) chosen[i] += user.first / S;
        for (int64_t i = blocks; i < step.top_n; i++) chosen[i] = -1;
        float *out = step.out + place * D;
        memset(out, 0, sizeof(float) * R * D);
        attend_keys(step, events, q, far, far_count, gates, scores, out);
        attend_keys(step, events, q, near, near_count, gates + 1, scores, out);
    }
}
