// A packed batch in the layouts that the passes read, made once for all pieces of work.
#pragma once

#include "near.h"

// Rows of the columns of queries: q and the gradient of the output, [R, d] each, then of each head
// and the short-term path the lse, the gate and the gate's gradient. Where no event is the
// gate is 0, and so is what a key gets from there. The forward pass has q alone.
enum { QUERY = 0, GRAD = R * D, LSE = 2 * R * D, GATE = LSE + R, MEAN = GATE + R };
constexpr int FORWARD_ROWS = GRAD, BACKWARD_ROWS = MEAN + R;

struct Batch {
    const Problem &problem;
    const Chunks &chunks;
    const Pattern pattern;
    const Columns queries, k, v;
    Rows rows;  // of values in the forward pass, of keys in the backward pass

    Batch(const Problem &problem, const Chunks &chunks)
        : problem(problem), chunks(chunks), pattern(problem, chunks.longest),
          queries(chunks, problem.groups, problem.grad ? BACKWARD_ROWS : FORWARD_ROWS),
          k(chunks, problem.groups, D), v(chunks, problem.groups, D),
          rows(chunks, problem.groups) {}

    // Calls work(batch, chunk, group, scratch) for all of them.
    template <class Work>
    Status each(int64_t few, int64_t room, const Work &work) const {
        const int64_t groups = problem.groups;
        return in_parallel(
            chunks.count * groups, problem.threads, few, room, [&](int64_t piece, Vector *scratch) {
                work(*this, piece / groups, piece % groups, scratch);
            });
    }

    Status fill() {
        if (!pattern.distances.data || !queries.data.data || !k.data.data || !v.data.data ||
            !rows.data.data)
            return NO_MEMORY;
        return each(64, 0, [this](const Batch &, int64_t chunk, int64_t group, Vector *) {
            const Chunk &at = chunks[chunk];
            const int64_t heads = problem.heads() * D, groups = problem.groups * D;
            float *columns = queries.at(group, chunk);
            copy_columns(problem.q, at, group, heads, R * D, columns);
            if (problem.grad)
                copy_columns(problem.grad, at, group, heads, R * D, columns + GRAD * LANES);
            copy_columns(problem.k, at, group, groups, D, k.at(group, chunk));
            copy_columns(problem.v, at, group, groups, D, v.at(group, chunk));
            rows.copy(problem.grad ? problem.k : problem.v, at, chunk, group, problem.groups);
        });
    }
};
