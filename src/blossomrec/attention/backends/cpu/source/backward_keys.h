// Gradients of the keys and values of one chunk and group: the lanes are keys, queries come by.
//
// Every key gathers what it gets from all queries that see it, in one order, so that the result
// does not depend on the threads.
#pragma once

#include "selected.h"

// Of each group and block the rows of the events that selected it, rising.
struct InverseLists {
    Buffer<int64_t> bounds;  // [G, blocks + 2]
    Buffer<int32_t> rows;    // [G, T * n]
    const int64_t blocks, most;

    InverseLists(const Problem &problem, const Chunks &chunks)
        : bounds(problem.groups * (chunks.blocks + 2)),
          rows(problem.groups * problem.rows * problem.top_n), blocks(chunks.blocks),
          most(problem.rows * problem.top_n) {}

    Status fill(const Batch &batch) {
        if (!bounds.data || !rows.data) return NO_MEMORY;
        const Problem &problem = batch.problem;
        return in_parallel(problem.groups, problem.threads, 1, 0, [&](int64_t group, Vector *) {
            // Counted two places ahead: the bounds stand where they belong once rows are put.
            int64_t *bound = bounds.data + group * (blocks + 2);
            memset(bound, 0, sizeof(int64_t) * (blocks + 2));
            each_choice(batch, group, [&](int64_t block, int64_t) { bound[block + 2]++; });
            for (int64_t block = 2; block < blocks + 2; block++) bound[block] += bound[block - 1];
            each_choice(batch, group, [&](int64_t block, int64_t row) {
                rows.data[group * most + bound[block + 1]++] = (int32_t)row;
            });
        });
    }

    template <class Use>
    void each(int64_t group, int64_t block, Use use) const {
        const int64_t *bound = bounds.data + group * (blocks + 2) + block;
        for (int64_t i = bound[0]; i < bound[1]; i++) use(rows.data[group * most + i]);
    }

  private:
    template <class Use>
    static void each_choice(const Batch &batch, int64_t group, Use use) {
        for (int64_t chunk = 0; chunk < batch.chunks.count; chunk++) {
            const Chunk &at = batch.chunks[chunk];
            for (int lane = 0; lane < at.events(); lane++) {
                const int32_t *chosen = selection(batch.problem, at.row + lane, group);
                for (int64_t i = 0; i < batch.problem.top_n; i++)
                    if (chosen[i] >= 0) use(at.first_block + chosen[i], at.row + lane);
            }
        }
    }
};

constexpr int QUERIES_AT_ONCE = 16;

// The keys of a chunk, and what queries add to their gradients.
struct KeyTile {
    const Batch &batch;
    const Chunk &at;
    const int64_t chunk, group;
    const float *const k, *const v;

    Arena arena;
    Vector *const grad_k = arena.take<Vector>(D), *const grad_v = arena.take<Vector>(D);
    // Weights with the gate, and gradients of the scores, [queries, R]: lanes are keys.
    Vector *const weights = arena.take<Vector>((batch.pattern.count + QUERIES_AT_ONCE) * R);
    Vector *const slopes = arena.take<Vector>((batch.pattern.count + QUERIES_AT_ONCE) * R);
    float *const strips = arena.take<float>(batch.pattern.strip_room(BACKWARD_ROWS));
    View *const near_queries = arena.take<View>(batch.pattern.count);
    // Queries that wait to be taken together.
    int waiting = 0;
    int64_t rows[QUERIES_AT_ONCE];
    int paths[QUERIES_AT_ONCE];
    Mask seen[QUERIES_AT_ONCE];

    KeyTile(const Batch &batch, int64_t chunk, int64_t group, Vector *scratch)
        : batch(batch), at(batch.chunks[chunk]), chunk(chunk), group(group),
          k(batch.k.at(group, chunk)), v(batch.v.at(group, chunk)), arena{scratch} {}

    void start() {
        for (int d = 0; d < D; d++) grad_k[d] = grad_v[d] = Vector{};
    }

    // Queries at the distances of the pattern: a vector of them for the vector of keys.
    void near() {
        const Shifts shifts{batch.queries, group, chunk, at, strips};
        const int count = shifted_views(batch.pattern, shifts, -1, near_queries);
        const float scale = batch.problem.scale();
        for (int each = 0; each < count; each++) {
            const View &view = near_queries[each];
            auto row = [&](int number) { return load(view.first + number * view.stride); };
            Vector score[R] = {}, slope[R] = {};
            for (int d = 0; d < D; d++) {
                const Vector key = load(k + d * LANES), value = load(v + d * LANES);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    score[r] += key * row(QUERY + r * D + d);
                    slope[r] += value * row(GRAD + r * D + d);
                }
            }
            for (int r = 0; r < R; r++) {
                const Vector weight =
                    exp2(score[r] * scale - row(LSE + r)) * row(GATE + r);
                weights[each * R + r] = weight;
                slopes[each * R + r] = weight * (slope[r] - row(MEAN + r));
            }
        }
        accumulate(count, [&](int each, int number) {
            const View &view = near_queries[each];
            return load(view.first + number * view.stride);
        });
    }

    // The event of a packed row sees these keys by a path (0 long-term, 1 short-term).
    void take(int64_t row, int path, Mask by) {
        if (path == 0 && batch.problem.is_union) {
            const int32_t query = row - at.start();
            by &= ~batch.pattern.sees(every(query), lane_numbers() + at.position, at.length);
            if (!any(by)) return;
        }
        rows[waiting] = row;
        paths[waiting] = path;
        seen[waiting] = by;
        if (++waiting == QUERIES_AT_ONCE) flush();
    }

    void flush() {
        const Problem &problem = batch.problem;
        const int64_t heads = problem.heads();
        for (int each = 0; each < waiting; each++) {
            const int64_t first = rows[each] * heads + group * R, path = paths[each];
            Vector score[R], slope[R];
            dot_keys(k, problem.q + first * D, score);
            dot_keys(v, problem.grad + first * D, slope);
            for (int r = 0; r < R; r++) {
                const int64_t place = path * problem.rows * heads + first + r;
                const Vector weight =
                    exp2(score[r] * problem.scale() - problem.lse[place]) *
                    problem.gate(first + r, path);
                weights[each * R + r] = seen[each] ? weight : Vector{};
                slopes[each * R + r] =
                    weights[each * R + r] * (slope[r] - problem.mean(first + r, path));
            }
        }
        const float *q[QUERIES_AT_ONCE], *grad[QUERIES_AT_ONCE];
        for (int each = 0; each < waiting; each++) {
            q[each] = problem.q + (rows[each] * heads + group * R) * D;
            grad[each] = problem.grad + (rows[each] * heads + group * R) * D;
        }
        accumulate(waiting, [&](int each, int number) {
            return number < GRAD ? q[each][number] : grad[each][number - GRAD];
        });
        waiting = 0;
    }

    void finish() const {
        const float root = 1 / sqrtf((float)D);
        const float *keys = (const float *)grad_k, *values = (const float *)grad_v;
        for (int lane = 0; lane < at.events(); lane++) {
            const int64_t first = ((at.row + lane) * batch.problem.groups + group) * D;
            for (int d = 0; d < D; d++) {
                batch.problem.grad_k[first + d] = root * keys[d * LANES + lane];
                batch.problem.grad_v[first + d] = values[d * LANES + lane];
            }
        }
    }

  private:
    template <class Row>
    void accumulate(int count, Row row) {
        int d = 0;
        for (; d + 4 <= D; d += 4) accumulate_part<4>(count, row, d);
        for (; d < D; d++) accumulate_part<1>(count, row, d);
    }

    template <int COUNT, class Row>
    void accumulate_part(int count, Row row, int d) {
        Vector sum_k[COUNT], sum_v[COUNT];
        for (int i = 0; i < COUNT; i++)
            sum_k[i] = grad_k[d + i], sum_v[i] = grad_v[d + i];
        for (int each = 0; each < count; each++)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int i = 0; i < COUNT; i++) {
                    sum_k[i] += slopes[each * R + r] * row(each, QUERY + r * D + d + i);
                    sum_v[i] += weights[each * R + r] * row(each, GRAD + r * D + d + i);
                }
        for (int i = 0; i < COUNT; i++)
            grad_k[d + i] = sum_k[i], grad_v[d + i] = sum_v[i];
    }
};

static void backward_keys_tile(
    const Batch &batch, const InverseLists &lists, int64_t chunk, int64_t group, Vector *scratch
) {
    KeyTile tile(batch, chunk, group, scratch);
    const Chunk &at = tile.at;
    const bool causal = batch.problem.causal;
    const Mask position = lane_numbers() + at.position, block = block_numbers(at.position);
    const int32_t last = at.position + at.events() - 1;
    tile.start();
    tile.near();

    // The events of the keys' own blocks.
    const int32_t begin = causal ? at.position : at.position / S * S;
    for (int32_t query = begin; query < (last / S + 1) * S && query < at.length; query++) {
        Mask seen = block == query / S;
        if (causal) seen &= position <= query;
        tile.take(at.start() + query, 0, seen);
    }
    for (int32_t each = at.position / S; each <= last / S && each < at.length / S; each++)
        lists.each(group, at.first_block + each,
                   [&](int64_t row) { tile.take(row, 0, block == each); });

    // Sinks are seen by all events that the pattern does not lead to them.
    const Pattern &pattern = batch.pattern;
    const int32_t sinks = pattern.sinks;
    if (sinks && (causal ? at.position < sinks : last >= at.length - sinks))
        for (int32_t query = 0; query < at.length; query++) {
            Mask seen;
            for (int lane = 0; lane < LANES; lane++) {
                const int32_t key = at.position + lane, distance = query - key;
                const bool sink = causal ? key < sinks && distance >= 0 : key >= at.length - sinks;
                seen[lane] = -(sink && key < at.length && !pattern.visible(abs(distance)));
            }
            if (any(seen)) tile.take(at.start() + query, 1, seen);
        }
    tile.flush();
    tile.finish();
}
