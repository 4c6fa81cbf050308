// Short histories, of which all scores cost less than looking up those that are seen: products of
// matrices, in which the keys that are not seen have no weight.
//
// A piece of work is one history and group, of which some events at a time are attended. A *row* is
// one of the R heads of an event. Keys are counted from the start of the history.
#pragma once

#include "chunks.h"
#include "products.h"
#include "selected.h"

constexpr int EVENTS_OF_ROWS = R < 32 ? 32 / R : 1;
constexpr int MOST_ROWS = (EVENTS_OF_ROWS * R + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
// By which path an event sees a key: bits.
enum { FAR = 1, NEAR = 2 };

static inline int32_t whole_vectors(int32_t keys) { return (keys + LANES - 1) / LANES * LANES; }

// Each short history as its first chunk, and what the short-term path sees at every distance.
struct ShortHistories {
    Buffer<Chunk> table;
    int64_t count = 0;
    int32_t longest = 0;
    Buffer<int32_t> by_distance;  // NEAR or 0, of keys `longest` behind to `longest` ahead

    explicit ShortHistories(const Problem &problem)
        : table(problem.histories), longest(fill(problem)), by_distance(2 * longest + 1) {
        if (!ready()) return;
        const Pattern pattern(problem, 0);
        for (int32_t ahead = -longest; ahead <= longest; ahead++)
            by_distance.data[longest + ahead] =
                (ahead <= 0 || !problem.causal) && pattern.visible(abs(ahead)) ? NEAR : 0;
    }

    bool ready() const { return table.data && by_distance.data; }
    // Numbers in a row of scores.
    int64_t width() const { return whole_vectors(longest); }

  private:
    // Gives the length of the longest.
    int32_t fill(const Problem &problem) {
        int64_t blocks = 0;
        int32_t most = 0;
        for (int64_t history = 0; table.data && history < problem.histories; history++) {
            const int32_t start = problem.cu_seqlens[history];
            const int32_t length = problem.cu_seqlens[history + 1] - start;
            if (length > 0 && length <= problem.short_length) {
                table.data[count++] = {start, blocks, 0, length};
                if (length > most) most = length;
            }
            blocks += length / S;
        }
        return most;
    }
};

// Some events of a short history, and the rows of their heads.
struct ShortRows {
    int32_t first, events;  // positions
    int count() const { return events * R; }
    int padded() const { return (count() + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }
    int32_t event(int row) const { return first + row / R; }
};

struct ShortHistory {
    const Problem &problem;
    const ShortHistories &all;
    const Chunk &at;
    const int64_t group, heads, width;

    Arena arena;
    int32_t *const seen = arena.take<int32_t>(width);  // by an event: FAR and NEAR

    ShortHistory(const Problem &problem, const ShortHistories &all, int64_t piece, Vector *scratch)
        : problem(problem), all(all), at(all.table.data[piece / problem.groups]),
          group(piece % problem.groups), heads(problem.heads()), width(all.width()),
          arena{scratch} {}

    template <class Use>
    void each_rows(Use use) const {
        for (int32_t first = 0; first < at.length; first += EVENTS_OF_ROWS) {
            const int32_t left = at.length - first;
            use(ShortRows{first, left < EVENTS_OF_ROWS ? left : EVENTS_OF_ROWS});
        }
    }

    // Whole vectors of keys, so many that the tile of this row sees no later key.
    int32_t end_of(const ShortRows &rows, int row) const {
        const int end = row / TILE_ROWS * TILE_ROWS + TILE_ROWS;
        const int last = (end < rows.count() ? end : rows.count()) - 1;
        return whole_vectors(problem.causal ? rows.event(last) + 1 : at.length);
    }

    int64_t place(const ShortRows &rows, int row) const {
        return (at.row + rows.event(row)) * heads + group * R + row % R;
    }

    // Keys or values, [T, G, d], as columns [d, width] and as rows [width, ROW].
    void copy_columns(const float *x, float *to) const {
        const int64_t stride = problem.groups * D;
        for (int32_t key = 0; key < width; key += LANES)
            copy_across(x + (at.row + key) * stride + group * D, stride, at.length - key, D,
                        to + key, width);
    }

    void copy_rows(const float *x, float *to) const {
        memset(to, 0, sizeof(float) * width * ROW);
        for (int32_t key = 0; key < at.length; key++)
            memcpy(to + key * ROW, x + ((at.row + key) * problem.groups + group) * D,
                   sizeof(float) * D);
    }

    // Rows of x, [T, H, d], times a number, [rows, ROW].
    void copy_heads(const float *x, const ShortRows &rows, float factor, float *to) const {
        if (ROW > D || rows.padded() > rows.count())
            memset(to, 0, sizeof(float) * rows.padded() * ROW);
        for (int row = 0; row < rows.count(); row++)
            for (int d = 0; d < D; d++) to[row * ROW + d] = x[place(rows, row) * D + d] * factor;
    }

    // to [rows, width] = rows [rows, ROW] times columns [d, width], up to the last key seen.
    void score(const ShortRows &rows, const float *heads, const float *columns, float *to) const {
        for (int row = 0; row < rows.count(); row += TILE_ROWS)
            multiply_rows({heads + row * ROW, ROW, 1}, columns, width, D, to + row * width, width,
                          end_of(rows, row));
    }

    // to [rows, ROW] = weights [rows, width] times rows of keys or values [width, ROW].
    void mix(const ShortRows &rows, const float *weights, const float *x, float *to) const {
        for (int row = 0; row < rows.count(); row += TILE_ROWS)
            multiply_rows({weights + row * width, width, 1}, x, ROW, end_of(rows, row),
                          to + row * ROW, ROW, ROW);
    }

    // Which keys below `end` an event sees, and how.
    void look(int32_t position, int32_t end) const {
        const int32_t keys = problem.causal ? position + 1 : at.length;
        memcpy(seen, all.by_distance.data + all.longest - position, sizeof(int32_t) * keys);
        memset(seen + keys, 0, sizeof(int32_t) * (end - keys));
        const int32_t sinks = problem.sinks < keys ? problem.sinks : keys;
        const int32_t sink = problem.causal ? 0 : at.length - sinks;
        for (int32_t key = sink; key < sink + sinks; key++) seen[key] |= NEAR;
        see_block(position / S, keys);
        const int32_t *chosen = selection(problem, at.row + position, group);
        for (int64_t i = 0; i < problem.top_n; i++)
            if (chosen[i] >= 0) see_block(chosen[i], keys);
    }

    // Which keys of the vector from `key` on the event sees along a path.
    Mask sees(int32_t key, int path) const { return (load(seen + key) & path) != 0; }

  private:
    void see_block(int32_t block, int32_t keys) const {
        const int32_t last = block * S + S < keys ? block * S + S : keys;
        for (int32_t key = block * S; key < last; key++) seen[key] |= FAR;
    }
};

// Output and lse of one short history and group.
struct ShortForward : ShortHistory {
    float *const keys = arena.take<float>(D * width);
    float *const values = arena.take<float>(width * ROW);
    float *const q = arena.take<float>(MOST_ROWS * ROW);
    float *const out = arena.take<float>(MOST_ROWS * ROW);
    float *const scores = arena.take<float>(MOST_ROWS * width);
    float *const near_weights = arena.take<float>(width);
    // Of each row of a union: the highest score and the sum of the weights, at last the lse.
    float *const highest = arena.take<float>(MOST_ROWS + LANES);
    float *const whole = arena.take<float>(MOST_ROWS + LANES);

    using ShortHistory::ShortHistory;

    void run() const {
        copy_columns(problem.k, keys);
        copy_rows(problem.v, values);
        each_rows([&](const ShortRows &rows) {
            copy_heads(problem.q, rows, problem.scale(), q);
            score(rows, q, keys, scores);
            for (int row = 0; row < rows.count(); row++) {
                if (row % R == 0) look(rows.event(row), end_of(rows, row + R - 1));
                const int32_t end = end_of(rows, row);
                float *of_row = scores + row * width;
                problem.is_union ? unite(of_row, end, row, place(rows, row))
                                 : weigh(of_row, end, place(rows, row));
            }
            mix(rows, scores, values, out);
            if (problem.is_union) divide(rows);
            for (int row = 0; row < rows.count(); row++)
                memcpy(problem.out + place(rows, row) * D, out + row * ROW, sizeof(float) * D);
        });
    }

  private:
    void keep(int64_t place, float far, float near) const {
        problem.lse[place] = far;
        problem.lse[problem.rows * heads + place] = near;
    }

    // Scores to weights of the one softmax, not yet divided by their sum.
    void unite(float *scores, int32_t end, int row, int64_t place) const {
        const float bias = problem.gates[place] * LOG2_E;
        Vector top = every(HIDDEN), sum = {};
        for (int32_t key = 0; key < end; key += LANES) {
            const Vector score = load(scores + key);
            const Vector seen =
                sees(key, NEAR) ? score + bias : (sees(key, FAR) ? score : every(HIDDEN));
            store(scores + key, seen);
            top = larger(top, seen);
        }
        highest[row] = largest(top);
        for (int32_t key = 0; key < end; key += LANES) {
            const Vector weight = exp2(load(scores + key) - highest[row]);
            store(scores + key, weight);
            sum += weight;
        }
        whole[row] = total(sum);
    }

    // Output and lse of the one softmax, given its sums.
    void divide(const ShortRows &rows) const {
        for (int row = 0; row < rows.count(); row += LANES)
            store(highest + row, load(highest + row) + log2(load(whole + row)));
        for (int row = 0; row < rows.count(); row++) {
            const int64_t at = place(rows, row);
            keep(at, highest[row], highest[row] - problem.gates[at] * LOG2_E);
            for (int d = 0; d < ROW; d += LANES)
                store(out + row * ROW + d, load(out + row * ROW + d) * (1 / whole[row]));
        }
    }

    // Scores to weights of both softmaxes, joined by the gates.
    void weigh(float *scores, int32_t end, int64_t place) const {
        Vector far_top = every(HIDDEN), near_top = every(HIDDEN), far_sum = {}, near_sum = {};
        for (int32_t key = 0; key < end; key += LANES) {
            const Vector score = load(scores + key);
            far_top = larger(far_top, sees(key, FAR) ? score : every(HIDDEN));
            near_top = larger(near_top, sees(key, NEAR) ? score : every(HIDDEN));
        }
        const float far_highest = largest(far_top), near_highest = largest(near_top);
        for (int32_t key = 0; key < end; key += LANES) {
            const Vector score = load(scores + key);
            const Vector far = exp2(sees(key, FAR) ? score - far_highest : every(HIDDEN));
            const Vector near = exp2(sees(key, NEAR) ? score - near_highest : every(HIDDEN));
            store(scores + key, far);
            store(near_weights + key, near);
            far_sum += far;
            near_sum += near;
        }
        const float far_whole = total(far_sum), near_whole = total(near_sum);
        const float far_share = problem.gate(place, 0) / far_whole;
        const float near_share = problem.gate(place, 1) / near_whole;
        for (int32_t key = 0; key < end; key += LANES)
            store(scores + key,
                  load(scores + key) * far_share + load(near_weights + key) * near_share);
        keep(place, far_highest + log2(every(far_whole))[0],
             near_highest + log2(every(near_whole))[0]);
    }
};
