// Selection: one warp is TILES blocks of queries and one group. Scores stream by and are not kept.
//
// Importance is wanted in float32. A float32 is the sum of three bf16: the mean of a group's queries
// comes in three parts, block keys in PARTS of them, and of the products those are left out that
// float32 would not hold. BY_HEAD: queries of one or two heads that are bf16 are multiplied as they
// are, each by itself; which blocks score highest is the same for a sum as for a mean.
#define QUERY_PARTS (BY_HEAD ? R : 3)

// Queries of sixteen events as factors A.
struct Queries {
    uint4 parts[QUERY_PARTS][STEPS];

    INLINE void load(const u16 *q, const Tile &at, int q_event, int q_head, int group, int lane) {
        const int g = lane / 4, c = lane % 4;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            u32 first[2][QUERY_PARTS], second[2][QUERY_PARTS];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int event = at.first() + g + 8 * half;
                const u16 *row = q + (at.start + event) * q_event + 16 * s + 4 * c;
                const bool held = event < at.length;
#if BY_HEAD
                for (int head = 0; head < R; ++head) {
                    const uint2 x = four(row + (group * R + head) * q_head, held);
                    first[half][head] = x.x, second[half][head] = x.y;
                }
#else
                float mean[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                for (int head = group * R; head < group * R + R; ++head) {
                    const uint2 x = four(row + head * q_head, held);
                    mean[0] += query_low(x.x), mean[1] += query_high(x.x);
                    mean[2] += query_low(x.y), mean[3] += query_high(x.y);
                }
                split(mean[0] * (1.0f / R), mean[1] * (1.0f / R), first[half]);
                split(mean[2] * (1.0f / R), mean[3] * (1.0f / R), second[half]);
#endif
            }
            for (int p = 0; p < QUERY_PARTS; ++p)
                parts[p][s] = make_uint4(first[0][p], first[1][p], second[0][p], second[1][p]);
        }
    }
};

// Keys of eight blocks as factors B.
struct BlockKeys {
    uint2 parts[PARTS][STEPS];

    INLINE void load(const u16 *keys, int plane, int first, int reach, int g) {
        for (int p = 0; p < PARTS; ++p)
            for (int s = 0; s < STEPS; ++s)
                parts[p][s] = four(keys + p * plane + first * G * D + 16 * s, first + g < reach);
    }
    // Sums are kept apart, so that few products wait for others, and the smallest come first.
    INLINE void score(float (&scores)[4], const Queries &queries) const {
        float sums[QUERY_PARTS][4];
        for (int n = 0; n < QUERY_PARTS; ++n) clear(sums[n]);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#if BY_HEAD
            for (int p = PARTS - 1; p >= 0; --p)
                for (int n = 0; n < R; ++n)
                    product(sums[n], queries.parts[n][s], parts[p][s].x, parts[p][s].y);
#else
            for (int order = 2; order >= 0; --order)
                for (int p = 0; p < PARTS && p <= order; ++p)
                    product(
                        sums[AHEAD ? order : 0], queries.parts[order - p][s], parts[p][s].x,
                        parts[p][s].y);
#endif
        }
        for (int i = 0; i < 4; ++i) {
            scores[i] = sums[QUERY_PARTS - 1][i];
            for (int n = QUERY_PARTS - 2; n >= 0; --n) scores[i] += sums[n][i];
        }
    }
};

// What sixteen events have chosen so far.
struct Choosing {
    Best best[2];
    float bound[2] = {-INFINITE, -INFINITE};   // what a score has to pass

    // Scores of the blocks from `first` on; none counts from `reach` on, nor the own one.
    INLINE void add(float (&scores)[4], int first, int reach, int own) {
        for (int i = 0; i < 4; ++i) {
            const int block = first + i % 2;
            if (block >= reach || (!CAUSAL && block == own)) scores[i] = -INFINITE;
        }
        if (scores[0] > bound[0] || scores[1] > bound[0] || scores[2] > bound[1]
            || scores[3] > bound[1]) {
            for (int i = 0; i < 4; ++i)
                if (scores[i] > bound[i / 2]) {
                    best[i / 2].add(scores[i], first + i % 2);
                    bound[i / 2] = fmaxf(bound[i / 2], best[i / 2].scores[N - 1]);
                }
        }
    }
    // What passed the other lanes of a row counts, too: few are then worth a look.
    INLINE void compare() {
        for (int half = 0; half < 2; ++half)
            bound[half] = fmaxf(bound[half], nth_best(best[half]));
    }
    INLINE void store(int *selected, const Tile &at, int group, int lane) const {
        for (int half = 0; half < 2; ++half) {
            int chosen[N];
            merge(best[half], chosen);
            const int event = at.first() + lane / 4 + 8 * half;
            if (lane % 4 == 0 && event < at.length)
                for (int j = 0; j < N; ++j)
                    selected[((at.start + event) * G + group) * N + j] = chosen[j];
        }
    }
};

INLINE bool is_time_to_compare(int first) {
    return AHEAD && first >= 512 ? first % 256 == 248 : first % 64 == 56;
}

extern "C" __global__ void __launch_bounds__(32 * TOGETHER) select_blocks(
    const u16 *__restrict__ q, const u16 *__restrict__ keys, const int *__restrict__ table,
    int *__restrict__ selected, int tiles, int rows, int q_event, int q_head
) {
    const int lane = this_lane(), g = lane / 4, c = lane % 4, group = this_group();
    // The last blocks of a history have the most to look at: they go first.
    const int last = tiles - 1 - TILES * this_tile();
    Queries queries[TILES];
    Choosing choosing[TILES];
    int reach[TILES], own[TILES], limit = 0;
#pragma unroll
    for (int u = 0; u < TILES; ++u) {
        const Tile at(table, last - u);
        own[u] = at.block;
        reach[u] = CAUSAL ? min(at.block, at.length / SIZE) : at.length / SIZE;
        limit = max(limit, reach[u]);
        queries[u].load(q, at, q_event, q_head, group, lane);
    }
    // Two tiles are of one history, or the later one is a first block, which has none to choose.
    const Tile earlier(table, last - (TILES - 1));
    if (earlier.empty()) return;
    const int plane = rows * G * D;
    keys += ((earlier.first_block_key + g) * G + group) * D + 4 * c;
    BlockKeys next;
    next.load(keys, plane, 0, limit, g);
#pragma unroll 2
    for (int first = 0; first < limit; first += 8) {
        BlockKeys here = next;
        if (AHEAD) next.load(keys, plane, first + 8, limit, g);
        else here.load(keys, plane, first, limit, g);
        float scores[TILES][4];
#pragma unroll
        for (int u = 0; u < TILES; ++u) here.score(scores[u], queries[u]);
#pragma unroll
        for (int u = 0; u < TILES; ++u) {
            choosing[u].add(scores[u], first + 2 * c, reach[u], own[u]);
            if (is_time_to_compare(first)) choosing[u].compare();
        }
    }
#pragma unroll
    for (int u = 0; u < TILES; ++u)
        choosing[u].store(selected, Tile(table, last - u), group, lane);
}
