// A layer's new events of users whose keys, values and block keys are kept: causal, without
// gradients. Projections are made here too: of a few events, calls would take longer than they do.
#pragma once

#include "threads.h"
#include "problem.h"
#include "projection.h"

// Memory is in pages of one block each; a table says which pages hold a user's blocks.
struct Step {
    const float *x;            // [t, size]
    const float *query, *key, *value;  // weights, [H * d, size] and [G * d, size]
    const float *gate, *gate_bias;     // [H * per, size] and [H * per]; null where gates are given
    const float *output;       // weights, [size, H * d]
    float *gates;              // [t, H, per], of a union one, the bias; else two
    const float *frequencies;  // [pairs], by which the first 2 * pairs numbers of a head rotate
    const float *angles;       // [t, 2, pairs], cosine and sine that they rotate by; else null
    float *pages;              // [P, G, S, 2d]
    const float *block_keys;   // [P, G, d]
    const int32_t *table;      // [users, width]
    float *hidden;             // [t, size]
    int32_t *selected;         // [t, G, n]
    int64_t rows, size, width, groups, pairs, top_n, window, sinks, is_union, threads;

    int64_t heads() const { return groups * R; }
    int64_t per() const { return is_union ? 1 : 2; }
    // User, position, first block held and own page of a row; [4, t] behind the structure.
    enum Place { USER, POSITION, FIRST, PAGE };
    int64_t place(Place what, int64_t row) const {
        return ((const int32_t *)(this + 1))[what * rows + row];
    }
};

// Events that a thread takes together.
constexpr int64_t EVENTS_AT_ONCE = 4;

static inline int64_t pieces_of(const Step &step) {
    return (step.rows + EVENTS_AT_ONCE - 1) / EVENTS_AT_ONCE;
}

static inline int64_t piece_size(const Step &step, int64_t first) {
    return step.rows - first < EVENTS_AT_ONCE ? step.rows - first : EVENTS_AT_ONCE;
}

// A new event; blocks and keys are counted from the oldest that its user holds.
struct Event {
    const Step &step;
    const int64_t position, first;
    const int32_t *pages;  // of the user's blocks

    Event(const Step &step, int64_t row)
        : step(step), position(step.place(Step::POSITION, row)),
          first(step.place(Step::FIRST, row)),
          pages(step.table + step.place(Step::USER, row) * step.width) {}

    int64_t place() const { return position - first * S; }

    // Whether the short-term path sees a key at a place.
    bool near(int64_t key) const {
        const int64_t back = place() - key;
        return back < step.window || (back & (back - 1)) == 0 || key + first * S < step.sinks;
    }

    // A key of a group; its value is behind it.
    const float *key(int64_t place, int64_t group) const {
        const int64_t page = pages[place / S];
        return step.pages + ((page * step.groups + group) * S + place % S) * 2 * D;
    }
};

static inline float product(const float *a, const float *b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < D; d++) sum += a[d] * b[d];
    return sum;
}

// Rotary embedding of an event, as rotary.py has it.
struct Turn {
    float cosine[D / 2 + 1], sine[D / 2 + 1];
    const int pairs;

    Turn(const Step &step, int64_t row, int64_t position) : pairs(step.pairs) {
        if (step.angles) {
            const float *given = step.angles + row * 2 * pairs;
            memcpy(cosine, given, sizeof(float) * pairs);
            memcpy(sine, given + pairs, sizeof(float) * pairs);
            return;
        }
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

// Puts keys and values of the events from `first` on where they are kept.
static void append_events(const Step &step, int64_t first, Vector *room) {
    const int64_t rows = piece_size(step, first), count = step.groups * D;
    float *const keys = (float *)room, *const values = keys + EVENTS_AT_ONCE * count;
    project(step.x + first * step.size, rows, step.size, step.key, nullptr, count, keys);
    project(step.x + first * step.size, rows, step.size, step.value, nullptr, count, values);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t position = step.place(Step::POSITION, first + row);
        const int64_t page = step.place(Step::PAGE, first + row);
        const Turn turn(step, first + row, position);
        for (int64_t group = 0; group < step.groups; group++) {
            float *to = step.pages + ((page * step.groups + group) * S + position % S) * 2 * D;
            turn(keys + row * count + group * D, to);
            memcpy(to + D, values + row * count + group * D, sizeof(float) * D);
        }
    }
}

static inline int64_t append_room(const Step &step) {
    return (2 * EVENTS_AT_ONCE * step.groups * D + LANES - 1) / LANES;
}

// Products of a query with LANES keys: row(i) is where the i-th is.
template <class Row>
static inline Vector score_lanes(Row row, const float *q) {
    if constexpr (D % LANES == 0) {
        Vector products[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            const float *key = row(i);
            products[i] = load(key) * load(q);
            for (int d = LANES; d < D; d += LANES) products[i] += load(key + d) * load(q + d);
        }
        return totals(products);
    }
    Vector scores;
    for (int i = 0; i < LANES; i++) scores[i] = product(row(i), q);
    return scores;
}

// The same with `count` keys.
template <class Row>
static inline void score_rows(Row row, int64_t count, const float *q, float *scores) {
    int64_t first = 0;
    for (; first + LANES <= count; first += LANES)
        store(scores + first, score_lanes([&](int i) { return row(first + i); }, q));
    for (; first < count; first++) scores[first] = product(row(first), q);
}

// Blocks that are scored before the best of them are looked for: their scores stay close by.
constexpr int64_t BLOCKS_SCORED = 1024;

// The most important blocks of each group so far, and what they are found with.
struct Choice {
    const int64_t groups, count;
    float *const mean;      // [G, d], of a group's queries
    float *const best;      // [G, n], falling
    float *const scores;    // [G, BLOCKS_SCORED]
    Vector *const highest;  // [G], by lane
    int32_t *chosen;        // [G, n]

    Choice(const Step &step, Arena &arena)
        : groups(step.groups), count(step.top_n), mean(arena.take<float>(groups * D)),
          best(arena.take<float>(groups * count)),
          scores(arena.take<float>(groups * BLOCKS_SCORED)), highest(arena.take<Vector>(groups)) {}

    // Scores of blocks for all groups, whose keys lie side by side, so that memory is read once:
    // row(i) is where those of the i-th are.
    template <class Row>
    void score(int64_t blocks, Row row) const {
        for (int64_t group = 0; group < groups; group++) highest[group] = every(-INFINITY);
        for (int64_t first = 0; first < blocks; first += LANES) {
            const int64_t left = blocks - first;
            const float *keys[LANES];
            for (int i = 0; i < LANES; i++) keys[i] = row(first + (i < left ? i : 0));
            for (int64_t group = 0; group < groups; group++) {
                const auto key = [&](int i) { return keys[i] + group * D; };
                Vector score = score_lanes(key, mean + group * D);
                if (left < LANES)
                    score = lane_numbers() < (int32_t)left ? score : every(-INFINITY);
                store(scores + group * BLOCKS_SCORED + first, score);
                highest[group] = larger(highest[group], score);
            }
        }
    }

    // Puts those of the blocks scored, of which the first is `number`, among the best.
    void take(int64_t blocks, int64_t number) const {
        for (int64_t group = 0; group < groups; group++) {
            float *const of_group = best + group * count;
            const float *const score = scores + group * BLOCKS_SCORED;
            const float bound = fmaxf(of_group[count - 1], least_of_best(highest[group]));
            for (int64_t first = 0; first < blocks; first += LANES) {
                // Most have none that is needed.
                if (!any(load(score + first) >= bound)) continue;
                for (int64_t i = first; i < first + LANES; i++)
                    if (score[i] > of_group[count - 1]) insert(score[i], number + i, group);
            }
        }
    }

  private:
    // As many as are chosen are as high as that, where each is the highest of a lane.
    float least_of_best(Vector lanes) const {
        float falling[LANES];
        if (count > LANES) return -INFINITY;
        for (int i = 0; i < LANES; i++) {
            int to = i;
            for (; to && falling[to - 1] < lanes[i]; to--) falling[to] = falling[to - 1];
            falling[to] = lanes[i];
        }
        return falling[count - 1];
    }

    // In place of the worst; among equals it comes last.
    void insert(float score, int32_t block, int64_t group) const {
        float *const of_group = best + group * count;
        int32_t *const blocks = chosen + group * count;
        int64_t place = count - 1;
        for (; place && score > of_group[place - 1]; place--)
            of_group[place] = of_group[place - 1], blocks[place] = blocks[place - 1];
        of_group[place] = score, blocks[place] = block;
    }
};

// The most important of the blocks before `own` for each group, rising, -1 last.
// q [G, R, d], chosen [G, n].
static void choose(
    const Event &event, const float *q, int64_t own, Choice choice, int32_t *chosen
) {
    const Step &step = event.step;
    const int64_t count = step.top_n, groups = step.groups, width = groups * D;
    for (int64_t place = 0; place < groups * count; place++) {
        choice.best[place] = -INFINITY;
        chosen[place] = own <= count && place % count < own ? place % count : -1;
    }
    if (own <= count) return;
    for (int64_t group = 0; group < groups; group++)
        for (int d = 0; d < D; d++) {
            float sum = 0;
            for (int r = 0; r < R; r++) sum += q[(group * R + r) * D + d];
            choice.mean[group * D + d] = sum / R;
        }
    choice.chosen = chosen;
    for (int64_t block = 0; block < own; block += BLOCKS_SCORED) {
        const int64_t blocks = own - block < BLOCKS_SCORED ? own - block : BLOCKS_SCORED;
        const int32_t *pages = event.pages + block;
        int32_t gaps = 0;
        for (int32_t i = 0; i < blocks; i++) gaps |= pages[i] - pages[0] - i;
        const float *const first = step.block_keys + pages[0] * width;
        // Pages that follow each other need not be looked up.
        if (gaps)
            choice.score(blocks, [&](int64_t i) { return step.block_keys + pages[i] * width; });
        else
            choice.score(blocks, [&](int64_t i) { return first + i * width; });
        choice.take(blocks, block);
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
    const float **far, **near;  // the keys; the near ones of the first group, and in `far` as well
    float *q, *out;             // [EVENTS_AT_ONCE, G, R, d]
    float *scores;              // [R, keys]
    Choice choice;

    StepScratch(const Step &step, Vector *from) : arena{from}, choice(step, arena) {
        far = arena.take<const float *>(most_far(step) + most_near(step));
        near = arena.take<const float *>(most_near(step));
        q = arena.take<float>(EVENTS_AT_ONCE * step.heads() * D);
        out = arena.take<float>(EVENTS_AT_ONCE * step.heads() * D);
        scores = arena.take<float>(R * (most_far(step) + most_near(step) + LANES));
    }
};

// Asks for keys and values that are wanted soon: they are scattered over the whole history.
static inline void fetch(const float *key, int64_t count) {
    for (int64_t line = 0; line < count * 2 * D; line += 16) __builtin_prefetch(key + line);
}

// Keys of a softmax, each of them `further` on; a bias is added to the scores of the first ones.
struct StepKeys {
    const float *const *keys;
    int64_t count, further, biased;
};

// Adds share * softmax(q . key) value over the keys, [R, d]. gates: of every head a pair, of which
// one is its share; or, where there are biased keys, the bias, and the share is 1.
static void attend_keys(
    const StepKeys &seen, const float *q, const float *gates, float *scores, float *out
) {
    const float *const *const keys = seen.keys;
    const int64_t count = seen.count, further = seen.further, biased = seen.biased;
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    const float scale = LOG2_E / sqrtf((float)D);
    for (int r = 0; r < R; r++) {
        float *score = scores + r * padded;
        score_rows([&](int64_t key) { return keys[key] + further; }, count, q + r * D, score);
        for (int64_t key = 0; key < biased; key++) score[key] += gates[r] * sqrtf((float)D);
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
        const float share = (biased ? 1 : gates[r * 2]) / total(sum);
        for (int64_t key = 0; key < count; key++) score[key] *= share;
    }
    for (int64_t key = 0; key < count; key++) {
        const float *value = keys[key] + further + D;
        for (int r = 0; r < R; r++) {
            const float weight = scores[r * padded + key];
#pragma omp simd
            for (int d = 0; d < D; d++) out[r * D + d] += weight * value[d];
        }
    }
}

// q and out [G, R, d], of which q is turned here.
static void attend_event(
    const Step &step, int64_t row, const StepScratch &scratch, float *q, float *out
) {
    const Event event(step, row);
    const int64_t heads = step.heads(), groups = step.groups, at = event.place(), own = at / S;
    const Turn turn(step, row, event.position);
    for (int64_t head = 0; head < heads; head++) turn(q + head * D, q + head * D);
    // Alike for all groups: the keys of the pattern, then the sinks that it does not lead to.
    int64_t near_count = 0;
    const auto take = [&](int64_t back) { scratch.near[near_count++] = event.key(at - back, 0); };
    for (int64_t back = 0; back < step.window && back <= at; back++) take(back);
    for (int64_t back = 1; back <= at; back *= 2)
        if (back >= step.window) take(back);
    for (int64_t sink = event.first * S; sink < step.sinks && sink <= event.position; sink++) {
        const int64_t back = event.position - sink;
        if (back >= step.window && (back & (back - 1))) take(back);
    }
    for (int64_t key = 0; key < near_count; key++)
        for (int64_t group = 0; group < groups; group++)
            fetch(scratch.near[key] + group * S * 2 * D, 1);

    int32_t *chosen = step.selected + row * groups * step.top_n;
    choose(event, q, own, scratch.choice, chosen);
    for (int64_t i = 0; i < groups * step.top_n; i++)
        if (chosen[i] >= 0) fetch(event.key(chosen[i] * (int64_t)S, i / step.top_n), S);

    memset(out, 0, sizeof(float) * heads * D);
    const float *gates = step.gates + row * heads * step.per();
    // The short-term path goes first: its keys were asked for first.
    for (int64_t group = 0; group < groups && !step.is_union; group++)
        attend_keys({scratch.near, near_count, group * S * 2 * D, 0}, q + group * R * D,
                    gates + group * R * 2 + 1, scratch.scores, out + group * R * D);
    for (int64_t group = 0; group < groups; group++, chosen += step.top_n) {
        int64_t count = 0;
        const auto add_block = [&](int64_t block, int64_t keys) {
            const float *first = event.key(block * S, group);
            for (int64_t key = 0; key < keys; key++)
                // Of a union each key counts once, as a near one.
                if (!step.is_union || !event.near(block * S + key))
                    scratch.far[count++] = first + key * 2 * D;
        };
        if (step.is_union)
            for (; count < near_count; count++)
                scratch.far[count] = scratch.near[count] + group * S * 2 * D;
        const int64_t biased = count;
        for (int64_t i = 0; i < step.top_n && chosen[i] >= 0; i++) {
            add_block(chosen[i], S);
            chosen[i] += event.first;
        }
        add_block(own, at % S + 1);
        attend_keys({scratch.far, count, 0, biased}, q + group * R * D,
                    gates + group * R * step.per(), scratch.scores, out + group * R * D);
    }
}

// Hidden of the events from `first` on.
static void step_events(const Step &step, int64_t first, Vector *room) {
    const StepScratch scratch(step, room);
    const int64_t rows = piece_size(step, first), size = step.heads() * D;
    const float *x = step.x + first * step.size;
    project(x, rows, step.size, step.query, nullptr, size, scratch.q);
    if (step.gate) {
        const int64_t count = step.heads() * step.per();
        float *gates = step.gates + first * count;
        project(x, rows, step.size, step.gate, step.gate_bias, count, gates);
        for (int64_t i = 0; i < rows * count && !step.is_union; i++)
            gates[i] = 1 / (1 + expf(-gates[i]));
    }
    for (int64_t row = 0; row < rows; row++)
        attend_event(step, first + row, scratch, scratch.q + row * size, scratch.out + row * size);
    float *hidden = step.hidden + first * step.size;
    project(scratch.out, rows, size, step.output, nullptr, step.size, hidden);
}
