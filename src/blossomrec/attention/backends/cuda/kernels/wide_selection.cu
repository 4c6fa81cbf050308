// Selection with wide heads: one warp is HELD blocks of queries and one group. Scores stream by, those
// of SPAN blocks at a time. Few pass what the N best of their row have: they wait in shared memory
// until some lane has no room for more, and then it is settled which of them still count.
//
// Importance is wanted in float32. A float32 is the sum of three bf16: the mean of a group's queries
// comes in three parts, block keys in PARTS of them, and of the products those are left out that
// float32 would not hold. BY_HEAD: queries of one or two heads that are bf16 are multiplied as they
// are, each by itself; which blocks score highest is the same for a sum as for a mean.
#define QUERY_PARTS (BY_HEAD ? R : 3)
#define EIGHTS 2                // products of eight blocks each
#define SPAN (8 * EIGHTS)
#define BROUGHT (2 * EIGHTS)    // scores of a row that a span brings to a lane
// Scores of a row that a lane has room for: the N best, and what a span brings.
#define WAITING (N > 4 ? N + BROUGHT : 4 + BROUGHT)

// Queries of sixteen events as factors A.
struct Queries {
    uint4 parts[QUERY_PARTS][STEPS];

    INLINE void load(const Tile &at, const u16 *q, int q_event, int q_head, int group, int lane) {
        const int g = lane / 4, c = lane % 4, first = at.first() + g, second = first + 8;
        const bool held = first < at.length, also = second < at.length;
        const u16 *upper = row_at(q, at.start + first, q_event) + group * R * q_head;
        const u16 *lower = row_at(q, at.start + second, q_event) + group * R * q_head;
#if BY_HEAD
        for (int head = 0; head < R; ++head)
            load_rows(parts[head], upper + head * q_head, lower + head * q_head, c, held, also);
#else
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int place = PAIRED ? s / 2 * 32 + 8 * c + s % 2 * 4 : 16 * s + 4 * c;
            u32 left[2][3], right[2][3];
            split_mean(left[0], right[0], upper + place, q_head, held);
            split_mean(left[1], right[1], lower + place, q_head, also);
            for (int p = 0; p < 3; ++p)
                parts[p][s] = make_uint4(left[0][p], left[1][p], right[0][p], right[1][p]);
        }
#endif
    }
};

// Keys of eight blocks as factors B.
struct BlockKeys {
    uint2 parts[PARTS][STEPS];

    // `row`: the key of block g.
    INLINE void load(const u16 *row, int plane, int c) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) load_row(parts[p], row + p * plane, c, true);
    }
};

// Scores of the rows of all tiles with all blocks of a span. The smallest products come first. Sums
// take turns, so that none waits for its last product.
INLINE void score(
    float (&scores)[HELD][EIGHTS][4], const Queries (&queries)[HELD],
    const BlockKeys (&keys)[EIGHTS]
) {
    const auto add = [&](int part, int p, int s) {
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
            for (int t = 0; t < HELD; ++t)
                product(
                    scores[t][n], queries[t].parts[part][s], keys[n].parts[p][s].x,
                    keys[n].parts[p][s].y);
    };
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n)
        for (int t = 0; t < HELD; ++t) clear(scores[t][n]);
#if BY_HEAD
#pragma unroll
    for (int p = PARTS - 1; p >= 0; --p)
#pragma unroll
        for (int head = 0; head < R; ++head)
#pragma unroll
            for (int s = 0; s < STEPS; ++s) add(head, p, s);
#else
#pragma unroll
    for (int order = 2; order >= 0; --order)
#pragma unroll
        for (int p = 0; p < PARTS && p <= order; ++p)
#pragma unroll
            for (int s = 0; s < STEPS; ++s) add(order - p, p, s);
#endif
}

// What waits of eight rows, in columns of 32 places; each lane sees its own column alone.
struct Waiting {
    float scores[WAITING * 32];
    int blocks[WAITING * 32];

    INLINE void put(int place, float score, int block) { scores[place] = score, blocks[place] = block; }
};

// What eight events choose.
struct Choosing {
    Waiting *waiting;
    float bound;   // what a score has to pass
    int next;      // place behind those that wait

    INLINE void begin(Waiting *memory, int lane) {
        waiting = memory, bound = -INFINITE, next = lane;
    }
    // Scores of the blocks from `first` on, of this lane two of each eight; of C the rows g + 8 * half.
    INLINE void add(const float (&scores)[EIGHTS][4], int half, int first, int lane) {
        float top = scores[0][2 * half];
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
            for (int i = 0; i < 2; ++i) top = fmaxf(top, scores[n][2 * half + i]);
        if (!any_lane(top > bound)) return;
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float score = scores[n][2 * half + i];
                if (score > bound) waiting->put(next, score, first + 8 * n + i), next += 32;
            }
        if (any_lane(next >= 32 * (WAITING - BROUGHT + 1))) settle(lane);
    }
    // The best of this lane.
    INLINE Best best(int lane) const {
        Best best;
#pragma unroll 1
        for (int place = lane; any_lane(place < next); place += 32)
            if (place < next) best.add(waiting->scores[place], waiting->blocks[place]);
        return best;
    }
    // Lets those wait that all lanes of a row leave among its best.
    INLINE void settle(int lane) {
        const Best best = this->best(lane);
        bound = fmaxf(bound, nth_best(best));
        next = lane;
        for (int j = 0; j < N; ++j) {
            waiting->put(lane + 32 * j, best.scores[j], best.blocks[j]);
            if (best.blocks[j] >= 0 && best.scores[j] >= bound) next += 32;
        }
    }
};

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_SELECTION / TOGETHER) select_blocks(
    const u16 *__restrict__ q, const u16 *__restrict__ keys, const int *__restrict__ table,
    int *__restrict__ selected, int tiles, int rows, int q_event, int q_head
) {
    __shared__ Waiting memory[TOGETHER][HELD][2];
    const int lane = this_lane(), g = lane / 4, c = lane % 4, group = this_group();
    // The last blocks of a history have the most to look at: they go first.
    table += 5 * (tiles - HELD * (this_tile() + 1));
    Queries queries[HELD];
    Choosing choosing[HELD][2];
    int own[HELD], reach[HELD];
#pragma unroll
    for (int t = 0; t < HELD; ++t) {
        const Tile at(table, t);
        own[t] = at.block, reach[t] = reach_of(at);
        queries[t].load(at, q, q_event, q_head, group, lane);
        for (int half = 0; half < 2; ++half)
            choosing[t][half].begin(&memory[warp_of_block()][t][half], lane);
    }
    const int plane = rows * G * D;
    keys += group * D;
    // Tiles of one history look at the same blocks; those of two are taken one after the other.
    const bool alike = Tile(table, 0).start == Tile(table, HELD - 1).start;
#pragma unroll 1
    for (int turn = 0; turn < HELD; turn += alike ? HELD : 1) {
        const u16 *row = keys + Tile(table, turn).first_block_key * (G * D);
        int end[HELD], first_end = 0x7fffffff, last_end = 0;
#pragma unroll
        for (int t = 0; t < HELD; ++t) {
            end[t] = alike || t == turn ? reach[t] : 0;
            first_end = min(first_end, end[t]), last_end = max(last_end, end[t]);
        }
        BlockKeys here[EIGHTS];
        // Behind the last block, where nothing counts, stands that one.
        const auto load = [&](int first) {
#pragma unroll
            for (int n = 0; n < EIGHTS; ++n)
                here[n].load(row_at(row, min(first + 8 * n + g, last_end - 1), G * D), plane, c);
        };
        if (last_end > 0) load(0);
#pragma unroll 1
        for (int first = 0; first < last_end; first += SPAN) {
            float scores[HELD][EIGHTS][4];
            score(scores, queries, here);
            load(first + SPAN);
            if (!CAUSAL || first + SPAN > first_end) {
#pragma unroll
                for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int block = first + 8 * n + 2 * c + i % 2;
#pragma unroll
                        for (int t = 0; t < HELD; ++t)
                            if (block >= end[t] || (!CAUSAL && block == own[t]))
                                scores[t][n][i] = -INFINITE;
                    }
            }
#pragma unroll
            for (int t = 0; t < HELD; ++t)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    choosing[t][half].add(scores[t], half, first + 2 * c, lane);
        }
    }
#pragma unroll
    for (int t = 0; t < HELD; ++t) {
        const Tile at(table, t);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            store_chosen(selected, choosing[t][half].best(lane), half, at, group, lane);
    }
}
