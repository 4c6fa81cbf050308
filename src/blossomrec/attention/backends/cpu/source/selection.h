// The most important blocks of the events of one chunk and group, block keys streamed past them.
#pragma once

#include "chunks.h"

constexpr int BLOCKS_AT_ONCE = 8;
constexpr int32_t NO_BLOCK = INT32_MAX;  // behind all others

struct Best {
    Vector *score;  // [n], falling
    Mask *block;    // [n]
    int64_t count;

    // Among equals the one that came first stays ahead.
    void insert(Vector newcomer, int32_t number) const {
        Mask moved = {}, index = every(number);
        for (int64_t place = 0; place < count; place++) {
            moved |= newcomer > score[place];
            const Vector stays = moved ? newcomer : score[place];
            const Mask stays_block = moved ? index : block[place];
            newcomer = moved ? score[place] : newcomer;
            index = moved ? block[place] : index;
            score[place] = stays;
            block[place] = stays_block;
        }
    }

    // The blocks of every lane, rising.
    void sort() const {
        for (int64_t last = count - 1; last > 0; last--)
            for (int64_t place = 0; place < last; place++) {
                const Mask a = block[place], b = block[place + 1];
                block[place] = a < b ? a : b;
                block[place + 1] = a < b ? b : a;
            }
    }
};

static int64_t selection_room(const Problem &problem) { return D + 2 * problem.top_n; }

// The blocks that one chunk's events may choose among.
struct Eligible {
    const bool causal;
    const Mask own;
    int32_t end;  // behind the last of any event

    Eligible(const Problem &problem, const Chunk &at)
        : causal(problem.causal), own(block_numbers(at.position)), end(at.length / S) {
        const int32_t last = own[at.events() - 1];
        if (causal && last < end) end = last;
    }

    Mask operator()(int32_t block) const { return causal ? block < own : block != own; }
    // Whether every event may choose every block before that one.
    bool everyone(int32_t block) const { return causal && block <= own[0]; }
};

// Means of a group's queries, [d, LANES]: the importance is linear in the query, so they stand for it.
static void mean_queries(const Problem &problem, const Chunk &at, int64_t group, float *to) {
    float means[LANES * D];
    for (int lane = 0; lane < at.events(); lane++) {
        const float *query = problem.q + ((at.row + lane) * problem.groups + group) * R * D;
        for (int d = 0; d < D; d++) {
            float sum = 0;
            for (int r = 0; r < R; r++) sum += query[r * D + d];
            means[lane * D + d] = sum / R;
        }
    }
    copy_across(means, D, at.events(), D, to, LANES);
}

// Keys of a history's blocks for one group, `stride` numbers apart.
static void find_best(
    const Eligible &eligible, const float *mean, const float *keys, int64_t stride, const Best &best
) {
    const Vector &worst = best.score[best.count - 1];
    for (int32_t block = 0; block < eligible.end; block += BLOCKS_AT_ONCE) {
        Vector score[BLOCKS_AT_ONCE] = {};
        const int32_t left = eligible.end - block;
        const int some = left < BLOCKS_AT_ONCE ? left : BLOCKS_AT_ONCE;
        const float *key[BLOCKS_AT_ONCE];
        for (int i = 0; i < BLOCKS_AT_ONCE; i++)
            key[i] = keys + (block + (i < some ? i : 0)) * stride;
        for (int d = 0; d < D; d++) {
            const Vector x = load(mean + d * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < BLOCKS_AT_ONCE; i++) score[i] += x * key[i][d];
        }
        const bool simple = some == BLOCKS_AT_ONCE && eligible.everyone(block + some);
        for (int i = 0; !simple && i < BLOCKS_AT_ONCE; i++)
            score[i] = i < some ? (eligible(block + i) ? score[i] : every(-INFINITY))
                                : every(-INFINITY);
        // Most groups of blocks hold none that anyone needs.
        Vector top = score[0];
        for (int i = 1; i < BLOCKS_AT_ONCE; i++) top = larger(top, score[i]);
        if (!any(top > worst)) continue;
        for (int i = 0; i < some; i++)
            if (any(score[i] > worst)) best.insert(score[i], block + i);
    }
}

static void select_tile(
    const Problem &problem, const Chunk &at, int64_t group, Vector *room
) {
    const int64_t groups = problem.groups, count = problem.top_n;
    const Eligible eligible(problem, at);
    const Best best{room + D, (Mask *)(room + D + count), count};
    for (int64_t place = 0; place < count; place++)
        best.score[place] = every(-INFINITY), best.block[place] = every(NO_BLOCK);
    if (eligible.end <= count) {
        // All are taken: nobody asks which are better.
        for (int32_t block = 0; block < eligible.end; block++)
            best.block[block] = eligible(block) ? every(block) : every(NO_BLOCK);
    } else {
        float *mean = (float *)room;
        mean_queries(problem, at, group, mean);
        const float *keys = problem.block_keys + (at.first_block * groups + group) * D;
        find_best(eligible, mean, keys, groups * D, best);
    }
    best.sort();
    for (int64_t place = 0; place < count; place++) {
        const Mask block = best.block[place] == NO_BLOCK ? every(-1) : best.block[place];
        for (int lane = 0; lane < at.events(); lane++)
            problem.selected[((at.row + lane) * groups + group) * count + place] = block[lane];
    }
}
