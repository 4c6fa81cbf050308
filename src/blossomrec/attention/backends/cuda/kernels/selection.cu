// Selection: one warp is one block of queries and one group. Scores stream by, those of SPAN blocks
// at a time, and are not kept.
//
// Importance is wanted in float32. A float32 is the sum of three bf16: the mean of a group's queries
// comes in three parts, block keys in PARTS of them, and of the products those are left out that
// float32 would not hold. BY_HEAD: queries of one or two heads that are bf16 are multiplied as they
// are, each by itself; which blocks score highest is the same for a sum as for a mean.
#define QUERY_PARTS (BY_HEAD ? R : 3)
#define EIGHTS 4                // products of eight blocks each
#define SPAN (8 * EIGHTS)

// Queries of sixteen events as factors A.
INLINE void load_queries(
    uint4 (&queries)[QUERY_PARTS][STEPS], const u16 *q, const Tile &at, int q_event, int q_head,
    int group, int lane
) {
    const int g = lane / 4, c = lane % 4;
    for (int s = 0; s < STEPS; ++s) {
        u32 first[2][QUERY_PARTS], second[2][QUERY_PARTS];
        for (int half = 0; half < 2; ++half) {
            const int event = at.first() + g + 8 * half;
            const u16 *row =
                row_at(q, at.start + event, q_event) + group * R * q_head + 16 * s + 4 * c;
#if BY_HEAD
            for (int head = 0; head < R; ++head) {
                const uint2 x = four(row + head * q_head, event < at.length);
                first[half][head] = x.x, second[half][head] = x.y;
            }
#else
            split_mean(first[half], second[half], row, q_head, event < at.length);
#endif
        }
        for (int p = 0; p < QUERY_PARTS; ++p)
            queries[p][s] = make_uint4(first[0][p], first[1][p], second[0][p], second[1][p]);
    }
}

// Keys of eight blocks as factors B.
struct BlockKeys {
    uint2 parts[PARTS][STEPS];

    // `row`: the key of block g, from this lane's first number on.
    INLINE void load(const u16 *row, int plane) {
        for (int p = 0; p < PARTS; ++p)
            for (int s = 0; s < STEPS; ++s) parts[p][s] = four(row + p * plane + 16 * s, true);
    }
    INLINE void score(float (&scores)[4], const uint4 (&queries)[QUERY_PARTS][STEPS]) const {
        clear(scores);
        for (int s = 0; s < STEPS; ++s) {
#if BY_HEAD
            for (int p = PARTS - 1; p >= 0; --p)
                for (int head = 0; head < R; ++head)
                    product(scores, queries[head][s], parts[p][s].x, parts[p][s].y);
#else
            // The smallest products first.
            for (int order = 2; order >= 0; --order)
                for (int p = 0; p < PARTS && p <= order; ++p)
                    product(scores, queries[order - p][s], parts[p][s].x, parts[p][s].y);
#endif
        }
    }
};

INLINE float top_of(const float (&scores)[2 * EIGHTS]) {
    float top = scores[0];
    for (int n = 1; n < 2 * EIGHTS; ++n) top = fmaxf(top, scores[n]);
    return top;
}

// What a lane has seen of one row, two of each eight blocks.
struct Row {
    Best best;
    float bound = -INFINITE;   // what a score has to pass

    // Adds scores of the blocks `first` and `first + 1`, and of those eight, sixteen ... further
    // on, among the first SPAN blocks. Each may be one of the best.
    INLINE void add_first(const float (&scores)[2 * EIGHTS], int first, int reach) {
        for (int n = 0; n < EIGHTS; ++n) {
            if (8 * n >= reach) break;
            for (int i = 0; i < 2; ++i) best.add(scores[2 * n + i], first + 8 * n + i);
        }
        share_bound();
    }
    // Adds those of SPAN blocks further on, of which few pass. Lanes add one score at a time, all
    // of them at once, from the best one down.
    INLINE void add(float (&scores)[2 * EIGHTS], int first) {
        float top = top_of(scores);
        if (!lanes_with(top > bound)) return;
#pragma unroll 1
        do {
            int block = -1;
            bool found = false;
            for (int n = 0; n < 2 * EIGHTS; ++n) {
                const bool here = !found && scores[n] == top;
                if (here) block = first + n / 2 * 8 + n % 2, scores[n] = -INFINITE;
                found |= here;
            }
            best.add(top, block);
            bound = fmaxf(bound, best.scores[N - 1]);
            top = top_of(scores);
        } while (lanes_with(top > bound));
        share_bound();
    }
    // What the lanes of a row have counts for all four: N scores are as high as the N-th of one
    // lane, and as the lowest of the N / 4-th of each.
    INLINE void share_bound() {
        float last = best.scores[N - 1], each = best.scores[(N + 3) / 4 - 1];
        for (int mask = 1; mask < 4; mask *= 2) {
            last = fmaxf(last, across(last, mask));
            each = fminf(each, across(each, mask));
        }
        bound = fmaxf(bound, fmaxf(last, each));
    }
};

extern "C" __global__ void __launch_bounds__(32 * TOGETHER) select_blocks(
    const u16 *__restrict__ q, const u16 *__restrict__ keys, const int *__restrict__ table,
    int *__restrict__ selected, int tiles, int rows, int q_event, int q_head
) {
    const int lane = this_lane(), g = lane / 4, c = lane % 4, group = this_group();
    // The last blocks of a history have the most to look at: they go first.
    const Tile at(table, tiles - 1 - this_tile());
    if (at.empty()) return;
    const int reach = reach_of(at);
    uint4 queries[QUERY_PARTS][STEPS];
    load_queries(queries, q, at, q_event, q_head, group, lane);
    const int plane = rows * G * D;
    keys = in_registers(keys + (at.first_block_key * G + group) * D + 4 * c);
    BlockKeys here[EIGHTS];
    // Behind the last block, where nothing counts, stands that one.
    const auto load = [&](int first) {
        for (int n = 0; n < EIGHTS; ++n)
            here[n].load(row_at(keys, min(first + 8 * n + g, reach - 1), G * D), plane);
    };
    if (reach > 0) load(0);
    Row seen[2];   // rows g and g + 8
#pragma unroll 1
    for (int first = 0; first < reach; first += SPAN) {
        float scores[2][2 * EIGHTS];
        for (int n = 0; n < EIGHTS; ++n) {
            float x[4];
            here[n].score(x, queries);
            for (int i = 0; i < 4; ++i) scores[i / 2][2 * n + i % 2] = x[i];
        }
        load(first + SPAN);
        if (!CAUSAL || first + SPAN > reach)
            for (int n = 0; n < 2 * EIGHTS; ++n) {
                const int block = first + 2 * c + n / 2 * 8 + n % 2;
                if (block >= reach || (!CAUSAL && block == at.block))
                    scores[0][n] = scores[1][n] = -INFINITE;
            }
        for (int half = 0; half < 2; ++half) {
            if (first == 0) seen[half].add_first(scores[half], 2 * c, reach);
            else seen[half].add(scores[half], first + 2 * c);
        }
    }
    for (int half = 0; half < 2; ++half)
        store_chosen(selected, seen[half].best, half, at, group, lane);
}
