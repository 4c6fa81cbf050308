// Keys that the events of a chunk see together: by the short-term pattern and in their own block.
//
// A *view* is where the numbers of one key (or query) are: a vector each, one lane an event, where
// every event sees another key at the same distance; or one number each, a key for all.
#pragma once

#include "chunks.h"

struct View {
    const float *first;
    int64_t stride;  // from one number of the head to the next
    Mask seen;       // by which events
};

// The views of a chunk: `shifted` ones of vectors first, then those of single keys.
struct Views {
    View *view;
    int shifted, count;
};

constexpr int MOST_OWN = LANES + 2 * S;  // views of own blocks that a chunk can have

// Distances of the short-term pattern, behind and, where that is seen, ahead (negative).
struct Pattern {
    Buffer<int32_t> distances;
    const int32_t window, sinks;
    const bool causal;
    int count = 0;

    Pattern(const Problem &problem, int32_t longest)
        : distances(2 * (problem.window + 32)),
          window(problem.window), sinks(problem.sinks), causal(problem.causal) {
        if (!distances.data) return;
        for (int32_t near = 0; near < window && near < longest; near++) add(near);
        for (int64_t power = 1; power < longest; power *= 2)
            if (power >= window) add((int32_t)power);
        if (causal) return;
        for (int behind = count, i = 0; i < behind; i++)
            if (distances.data[i]) add(-distances.data[i]);
    }

    bool visible(int32_t distance) const {
        return distance < window || (distance & (distance - 1)) == 0;
    }

    // Which queries see which keys, positions in a history of that length, by the pattern or as
    // sinks; both in one direction.
    Mask sees(Mask query, Mask key, int32_t length) const {
        Mask distance = query - key;
        distance = distance < 0 ? -distance : distance;
        const Mask near = (distance < window) | ((distance & (distance - 1)) == 0);
        return near | (causal ? key < sinks : key >= length - sinks);
    }

    // Numbers that the strips of a chunk take, for columns of so many rows.
    int64_t strip_room(int64_t rows) const { return 2 * (window / LANES + 4) * rows * 2 * LANES; }
    // Views that a chunk has at most, of either path.
    int64_t most_views() const { return count + sinks > MOST_OWN ? count + sinks : MOST_OWN; }

  private:
    void add(int32_t distance) { distances.data[count++] = distance; }
};

// Views of positions at the pattern's distances from a chunk's own. Distances that are no multiple
// of LANES are read from a *strip*, two neighbouring chunks side by side, [rows, 2 * LANES].
struct Shifts {
    const Columns &columns;
    const int64_t group, chunk;
    const Chunk &at;
    float *room;
    int32_t held = INT32_MIN;  // the left chunk of the last strip
    float *strip = nullptr;

    View operator()(int32_t back) {
        const int32_t first = at.position - back;
        const int32_t low = first >= 0 ? first / LANES : -((LANES - 1 - first) / LANES);
        const Mask position = lane_numbers() + first;
        const Mask seen = (position >= 0) & (position < at.length);
        if (low * LANES == first) return {columns_of(low), LANES, seen};
        if (low != held) make(low);
        return {strip + (first - low * LANES), 2 * LANES, seen};
    }

  private:
    const float *columns_of(int32_t number) const {
        const bool inside = number >= 0 && number * LANES < at.length;
        return inside ? columns.at(group, chunk + number - at.position / LANES) : nullptr;
    }

    void make(int32_t low) {
        const float *left = columns_of(low), *right = columns_of(low + 1);
        strip = room;
        room += columns.rows * 2 * LANES;
        held = low;
        for (int64_t row = 0; row < columns.rows; row++) {
            store(strip + row * 2 * LANES, left ? load(left + row * LANES) : Vector{});
            store(strip + row * 2 * LANES + LANES, right ? load(right + row * LANES) : Vector{});
        }
    }
};

// Shifted views by which a chunk sees keys (sign 1) or is seen by queries (sign -1).
static int shifted_views(const Pattern &pattern, Shifts shifts, int sign, View *view) {
    int count = 0;
    const Chunk &at = shifts.at;
    for (int i = 0; i < pattern.count; i++) {
        const int32_t back = sign * pattern.distances.data[i], first = at.position - back;
        if (first + at.events() <= 0 || first >= at.length) continue;
        view[count++] = shifts(back);
    }
    return count;
}

// Views of the short-term keys of a chunk in x, [T, G, d], and its columns, with room for strips.
static Views near_views(
    const Pattern &pattern, const Shifts &shifts, const float *x, int64_t groups, View *view
) {
    const Chunk &at = shifts.at;
    Views views{view, shifted_views(pattern, shifts, 1, view), 0};
    views.count = views.shifted;
    for (int32_t sink = 0; sink < pattern.sinks; sink++) {
        const int32_t position = pattern.causal ? sink : at.length - 1 - sink;
        if (position < 0 || position >= at.length) break;
        Mask seen;
        for (int lane = 0; lane < LANES; lane++) {
            const int32_t distance = at.position + lane - position;
            seen[lane] = -(!pattern.visible(abs(distance)) && !(pattern.causal && distance < 0));
        }
        if (any(seen))
            view[views.count++] = {
                x + ((at.start() + position) * groups + shifts.group) * D, 1, seen};
    }
    return views;
}

// Views of the keys in the own blocks of a chunk; of a union, of those that are not near ones.
static Views own_views(
    const Pattern &pattern, const float *x, const Problem &problem, int64_t group, const Chunk &at,
    View *view
) {
    const bool causal = pattern.causal;
    Views views{view, 0, 0};
    const Mask position = lane_numbers() + at.position, block = block_numbers(at.position);
    const int32_t last = at.position + at.events() - 1;
    const int32_t end = causal ? last + 1 : (last / S + 1) * S;
    for (int32_t key = at.position / S * S; key < end && key < at.length; key++) {
        Mask seen = block == key / S;
        if (causal) seen &= position >= key;
        if (problem.is_union) {
            seen &= ~pattern.sees(position, every(key), at.length);
            if (!any(seen)) continue;
        }
        view[views.count++] = {x + ((at.start() + key) * problem.groups + group) * D, 1, seen};
    }
    return views;
}

// sums[r] = products of the columns q, [R, d, LANES], with a key.
static inline void dot(const float *q, const View &key, bool shifted, Vector *sums) {
    Vector sum[R] = {};
    if (shifted) {
        for (int d = 0; d < D; d++) {
            const Vector x = load(key.first + d * key.stride);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) sum[r] += load(q + (r * D + d) * LANES) * x;
        }
    } else {
        for (int d = 0; d < D; d++) {
            const float x = key.first[d];
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) sum[r] += load(q + (r * D + d) * LANES) * x;
        }
    }
    for (int r = 0; r < R; r++) sums[r] = sum[r];
}

template <int COUNT>
static inline void add_part(const Views &views, const Vector *weights, int d, Vector *sums) {
    Vector sum[R][COUNT];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < COUNT; i++) sum[r][i] = sums[r * D + d + i];
    for (int key = 0; key < views.count; key++) {
        const View &view = views.view[key];
        const float *first = view.first + d * view.stride;
        if (key < views.shifted) {
#pragma GCC unroll 4
            for (int i = 0; i < COUNT; i++) {
                const Vector x = load(first + i * view.stride);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) sum[r][i] += weights[key * R + r] * x;
            }
        } else {
#pragma GCC unroll 4
            for (int i = 0; i < COUNT; i++) {
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) sum[r][i] += weights[key * R + r] * first[i];
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < COUNT; i++) sums[r * D + d + i] = sum[r][i];
}

// sums [R, d] += weights [keys, R] times the keys.
static inline void add(const Views &views, const Vector *weights, Vector *sums) {
    constexpr int PART = R > 4 ? 2 : 4;
    int d = 0;
    for (; d + PART <= D; d += PART) add_part<PART>(views, weights, d, sums);
    for (; d < D; d++) add_part<1>(views, weights, d, sums);
}

// Scores of all views, [keys, R], HIDDEN where a key is not seen.
static inline void score(const float *q, const Views &views, float scale, Vector *scores) {
    for (int key = 0; key < views.count; key++) {
        const View &view = views.view[key];
        dot(q, view, key < views.shifted, scores + key * R);
        for (int r = 0; r < R; r++)
            scores[key * R + r] = view.seen ? scores[key * R + r] * scale : every(HIDDEN);
    }
}

// Scores to weights relative to their maximum: of each head the maximum and the sum, [R].
static inline void soften(int keys, Vector *scores, Vector *top, Vector *sum) {
    for (int r = 0; r < R; r++) top[r] = every(HIDDEN), sum[r] = Vector{};
    for (int key = 0; key < keys; key++)
        for (int r = 0; r < R; r++) top[r] = larger(top[r], scores[key * R + r]);
    for (int key = 0; key < keys; key++)
        for (int r = 0; r < R; r++) {
            // An event that sees nothing yet has no weights, not equal ones.
            const Vector weight = exp2(scores[key * R + r] - top[r]);
            sum[r] += scores[key * R + r] = scores[key * R + r] > HIDDEN ? weight : Vector{};
        }
}
