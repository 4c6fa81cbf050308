// The most important blocks of the events of one chunk and group, block keys streamed past them.
#pragma once

#include "chunks.h"

constexpr int BLOCKS_AT_ONCE = 8;

struct Best {
    Vector *score;  // [n], falling
    Mask *block;    // [n]
    int64_t count;

    // Among equals the one that came first stays ahead.
    void insert(Vector newcomer, int32_t number) {
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
};

static int64_t selection_room(const Problem &problem) { return D + 2 * problem.top_n; }

static void select_tile(
    const Problem &problem, const Chunk &at, int64_t group, Vector *room
) {
    const int64_t groups = problem.groups, count = problem.top_n;
    // The importance is linear in the query: the mean of the group's queries stands for them.
    float *mean = (float *)room;
    memset(mean, 0, sizeof(Vector) * D);
    for (int lane = 0; lane < at.events(); lane++) {
        const float *query = problem.q + ((at.row + lane) * groups + group) * R * D;
        for (int r = 0; r < R; r++)
            for (int d = 0; d < D; d++) mean[d * LANES + lane] += query[r * D + d];
        for (int d = 0; d < D; d++) mean[d * LANES + lane] /= R;
    }
    Best best{room + D, (Mask *)(room + D + count), count};
    for (int64_t place = 0; place < count; place++)
        best.score[place] = every(-INFINITY), best.block[place] = every(-1);

    const Mask own = block_numbers(at.position);
    const int32_t first_own = own[0], blocks = at.length / S;
    const int32_t reach = own[at.events() - 1] < blocks ? own[at.events() - 1] : blocks;
    const int32_t end = problem.causal ? reach : blocks;
    const float *keys = problem.block_keys + (at.first_block * groups + group) * D;
    for (int32_t block = 0; block < end; block += BLOCKS_AT_ONCE) {
        Vector score[BLOCKS_AT_ONCE] = {};
        const int some = end - block < BLOCKS_AT_ONCE ? end - block : BLOCKS_AT_ONCE;
        const float *key[BLOCKS_AT_ONCE];
        for (int i = 0; i < BLOCKS_AT_ONCE; i++)
            key[i] = keys + (int64_t)(block + (i < some ? i : 0)) * groups * D;
        for (int d = 0; d < D; d++) {
            const Vector x = load(mean + d * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < BLOCKS_AT_ONCE; i++) score[i] += x * key[i][d];
        }
        const bool simple = some == BLOCKS_AT_ONCE && block + some <= first_own;
        for (int i = 0; !simple && i < BLOCKS_AT_ONCE; i++) {
            const Mask eligible = problem.causal ? block + i < own : block + i != own;
            score[i] = i < some ? (eligible ? score[i] : every(-INFINITY)) : every(-INFINITY);
        }
        // Most groups of blocks hold none that anyone needs.
        Vector top = score[0];
        for (int i = 1; i < BLOCKS_AT_ONCE; i++) top = larger(top, score[i]);
        if (!any(top > best.score[count - 1])) continue;
        for (int i = 0; i < some; i++)
            if (any(score[i] > best.score[count - 1])) best.insert(score[i], block + i);
    }

    for (int lane = 0; lane < at.events(); lane++) {
        int32_t *chosen = problem.selected + ((at.row + lane) * groups + group) * count;
        int64_t filled = 0;
        for (int64_t place = 0; place < count; place++) {
            const int32_t block = best.block[place][lane];
            if (block < 0) break;
            int64_t to = filled++;
            for (; to && chosen[to - 1] > block; to--) chosen[to] = chosen[to - 1];
            chosen[to] = block;
        }
        for (; filled < count; filled++) chosen[filled] = -1;
    }
}
