// New events of users whose keys, values and block keys are kept: causal, without gradients.
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

// Products of a query with keys: row(i) is where the i-th is.
template <class Row>
static inline void score_rows(Row row, int64_t count, const float *q, float *scores) {
    int64_t first = 0;
    if (D % LANES == 0)
        for (; first + LANES <= count; first += LANES) {
            Vector products[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const float *key = row(first + i);
                products[i] = load(key) * load(q);
                for (int d = LANES; d < D; d += LANES) products[i] += load(key + d) * load(q + d);
            }
            store(scores + first, totals(products));
        }
    for (; first < count; first++) scores[first] = product(row(first), q);
}

// Puts a block among the best of one group, of which the worst is less; among equals it comes last.
static inline void insert(float score, int32_t block, int64_t count, float *best, int32_t *chosen) {
    int64_t place = count - 1;
    for (; place && score > best[place - 1]; place--)
        best[place] = best[place - 1], chosen[place] = chosen[place - 1];
    best[place] = score, chosen[place] = block;
}

// The most important of the blocks before `own` for each group, rising, -1 last.
// q [G, R, d], best [G, n], chosen [G, n].
static void choose(
    const Step &step, const User &user, const float *q, int64_t own, float *mean, float *best,
    int32_t *chosen
) {
    const int64_t count = step.top_n, groups = step.groups;
    for (int64_t place = 0; place < groups * count; place++) {
        best[place] = -INFINITY;
        chosen[place] = own <= count && place % count < own ? place % count : -1;
    }
    if (own <= count) return;
    for (int64_t group = 0; group < groups; group++)
        for (int d = 0; d < D; d++) {
            float sum = 0;
            for (int r = 0; r < R; r++) sum += q[(group * R + r) * D + d];
            mean[group * D + d] = sum / R;
        }
    // A few blocks for all groups, whose keys lie side by side, so that memory is read once.
    for (int64_t block = 0; block < own; block += SCORED_AT_ONCE) {
        const int some = own - block < SCORED_AT_ONCE ? own - block : SCORED_AT_ONCE;
        for (int64_t group = 0; group < groups; group++) {
            const float *keys = user.blocks + (block * groups + group) * D;
            float score[SCORED_AT_ONCE], *worst = best + group * count + count - 1;
            score_rows([&](int64_t i) { return keys + i * groups * D; }, some, mean + group * D,
                       score);
            for (int i = 0; i < some; i++) {
                // Most have none that is needed.
                if (i % LANES == 0)
                    while (i + LANES <= some && !any(load(score + i) > *worst)) i += LANES;
                if (i < some && score[i] > *worst)
                    insert(score[i], block + i, count, best + group * count,
                           chosen + group * count);
            }
        }
    }
    for (int64_t group = 0; group < groups; group++) {
        int32_t *of_group = chosen + group * count;
        for (int64_t place = 1; place < count && of_group[place] >= 0; place++) {
            const int32_t block = of_group[place];
            int64_t to = place;
            for (; to && of_group[to - 1] > block; to--) of_group[to] = of_group[to - 1];
            of_group[to] = block;
        }
    }
}

static inline int64_t most_far(const Step &step) { return (step.top_n + 1) * S; }
static inline int64_t most_near(const Step &step) { return step.window + 64 + step.sinks; }

struct StepScratch {
    Arena arena;
    int64_t *far, *near;  // rows of the keys
    float *q, *mean;      // [G, R, d] and [G, d]
    float *best;          // [G, n]
    float *scores;        // [R, keys]

    StepScratch(const Step &step, Vector *from) : arena{from} {
        far = arena.take<int64_t>(most_far(step));
        near = arena.take<int64_t>(most_near(step));
        q = arena.take<float>(step.groups * R * D);
        mean = arena.take<float>(step.groups * D);
        best = arena.take<float>(step.groups * step.top_n);
        scores = arena.take<float>(R * (most_far(step) + most_near(step) + LANES));
    }
};

// Asks for keys and values that are wanted soon: they are scattered over the whole history.
static inline void fetch(const float *row) {
    for (int line = 0; line < 2 * D; line += 16) __builtin_prefetch(row + line);
}

// Adds share * softmax(q . key) value over the keys, [R, d]. `rows` are those of the keys.
static void attend_keys(
    const Step &step, const float *events, const float *q, const int64_t *rows, int64_t count,
    const float *gates, float *scores, float *out
) {
    const int64_t width = 2 * D * step.groups, padded = (count + LANES - 1) / LANES * LANES;
    const float scale = 1.44269504f / sqrtf((float)D);
    for (int r = 0; r < R; r++) {
        float *score = scores + r * padded;
        score_rows([&](int64_t key) { return events + rows[key] * width; }, count, q + r * D,
                   score);
        for (int64_t key = count; key < padded; key++) score[key] = HIDDEN;
        Vector top = every(HIDDEN), sum = {};
        for (int64_t key = 0; key < padded; key += LANES) {
            store(score + key, load(score + key) * scale);
            top = larger(top, load(score + key));
        }
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

static void step_event(
    const Step &step, const User &user, int64_t event, int64_t row, Vector *room
) {
    const StepScratch scratch(step, room);
    const int64_t heads = step.groups * R, at = user.held + event, own = at / S;
    const Turn turn(step, user.first + at);
    for (int64_t head = 0; head < heads; head++)
        turn(step.q + (row * heads + head) * D, scratch.q + head * D);
    const int64_t width = 2 * D * step.groups;
    // Alike for all groups: the keys of the pattern, then the sinks that it does not lead to.
    int64_t near_count = 0;
    for (int64_t back = 0; back < step.window && back <= at; back++)
        scratch.near[near_count++] = at - back;
    for (int64_t back = 1; back <= at; back *= 2)
        if (back >= step.window) scratch.near[near_count++] = at - back;
    for (int64_t sink = user.first; sink < step.sinks && sink - user.first <= at; sink++) {
        const int64_t back = at - (sink - user.first);
        if (back >= step.window && (back & (back - 1))) scratch.near[near_count++] = at - back;
    }
    for (int64_t key = 0; key < near_count; key++)
        for (int64_t group = 0; group < step.groups; group++)
            fetch(user.events + scratch.near[key] * width + group * 2 * D);

    int32_t *chosen = step.selected + row * step.groups * step.top_n;
    choose(step, user, scratch.q, own, scratch.mean, scratch.best, chosen);
    for (int64_t i = 0; i < step.groups * step.top_n; i++)
        for (int64_t key = 0; key < S && chosen[i] >= 0; key++)
            fetch(user.events + (chosen[i] * (int64_t)S + key) * width + i / step.top_n * 2 * D);

    const float *gates = step.gates + row * heads * 2;
    float *out = step.out + row * heads * D;
    memset(out, 0, sizeof(float) * heads * D);
    // The short-term path goes first: its keys were asked for first.
    for (int64_t group = 0; group < step.groups; group++)
        attend_keys(step, user.events + group * 2 * D, scratch.q + group * R * D, scratch.near,
                    near_count, gates + group * R * 2 + 1, scratch.scores, out + group * R * D);
    for (int64_t group = 0; group < step.groups; group++, chosen += step.top_n) {
        int64_t far_count = 0;
        for (int64_t i = 0; i < step.top_n && chosen[i] >= 0; i++) {
            for (int64_t key = 0; key < S; key++)
                scratch.far[far_count++] = (int64_t)chosen[i] * S + key;
            chosen[i] += user.first / S;
        }
        for (int64_t key = own * S; key <= at; key++) scratch.far[far_count++] = key;
        attend_keys(step, user.events + group * 2 * D, scratch.q + group * R * D, scratch.far,
                    far_count, gates + group * R * 2, scratch.scores, out + group * R * D);
    }
}
