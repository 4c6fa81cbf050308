// Selection with wide heads: one warp is one block of queries and one group. Scores stream by, those
// of SPAN blocks at a time. Few pass what the N best of their row have: they wait in shared memory
// until some lane has no room for more, and then all lanes settle at once which are kept.
//
// Importance is wanted in float32. A float32 is the sum of three bf16: the mean of a group's queries
// comes in three parts, block keys in PARTS of them, and of the products those are left out that
// float32 would not hold. BY_HEAD: queries of one or two heads that are bf16 are multiplied as they
// are, each by itself; which blocks score highest is the same for a sum as for a mean.
#define QUERY_PARTS (BY_HEAD ? R : 3)
#define EIGHTS 2                // products of eight blocks each
#define SPAN (8 * EIGHTS)
#define WAITING 8               // scores of a row that a lane has room for; a span brings 2 * EIGHTS

// Numbers of a row of a head that a lane has in step s, four of them. Those of two steps lie side by
// side, so that one load of keys fills both.
INLINE int place_of(int s, int c) { return STEPS > 1 ? s / 2 * 32 + 8 * c + s % 2 * 4 : 4 * c; }

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
                const u16 *row =
                    row_at(q, at.start + event, q_event) + group * R * q_head + place_of(s, c);
                const bool held = event < at.length;
#if BY_HEAD
                for (int head = 0; head < R; ++head) {
                    const uint2 x = four(row + head * q_head, held);
                    first[half][head] = x.x, second[half][head] = x.y;
                }
#else
                split_mean(first[half], second[half], row, q_head, held);
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

    // `row`: the key of block g, from this lane's first number on.
    INLINE void load(const u16 *row, int plane) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
#if D == 16
            parts[p][0] = four(row + p * plane, true);
#else
#pragma unroll
            for (int s = 0; s < STEPS; s += 2) {
                const uint4 x = *reinterpret_cast<const uint4 *>(row + p * plane + 16 * s);
                parts[p][s] = make_uint2(x.x, x.y), parts[p][s + 1] = make_uint2(x.z, x.w);
            }
#endif
        }
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
                        sums[order], queries.parts[order - p][s], parts[p][s].x, parts[p][s].y);
#endif
        }
        for (int i = 0; i < 4; ++i) {
            scores[i] = sums[QUERY_PARTS - 1][i];
            for (int n = QUERY_PARTS - 2; n >= 0; --n) scores[i] += sums[n][i];
        }
    }
};

// What eight rows have in shared memory; each lane sees its own column alone.
struct Kept {
    float scores[N][32];
    int blocks[N][32];
    uint2 waiting[WAITING][32];   // score and block

    INLINE Best load(int lane) const {
        Best best;
#pragma unroll
        for (int j = 0; j < N; ++j) best.scores[j] = scores[j][lane], best.blocks[j] = blocks[j][lane];
        return best;
    }
    INLINE void store(const Best &best, int lane) {
#pragma unroll
        for (int j = 0; j < N; ++j) scores[j][lane] = best.scores[j], blocks[j][lane] = best.blocks[j];
    }
};

// What sixteen events have chosen so far: rows g, then g + 8.
struct Choosing {
    Kept *kept;
    float bound[2];   // what a score has to pass
    int count[2];     // of those that wait

    INLINE void begin(Kept *memory, int lane) {
        kept = memory;
        for (int half = 0; half < 2; ++half) {
            bound[half] = -INFINITE, count[half] = 0;
            kept[half].store(Best(), lane);
        }
    }
    // Scores of the blocks from `first` on, of this lane two of each eight.
    INLINE void add(const float (&scores)[EIGHTS][4], int first, int lane) {
        bool passes = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = -INFINITE;
            for (int n = 0; n < EIGHTS; ++n)
                top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            passes |= top > bound[half];
        }
        if (!lanes_with(passes)) return;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float score = scores[n][2 * half + i];
                    if (score > bound[half]) {
                        kept[half].waiting[count[half]++][lane] =
                            make_uint2(__float_as_int(score), first + 8 * n + i);
                    }
                }
        if (lanes_with(max(count[0], count[1]) > WAITING - 2 * EIGHTS)) settle(lane);
    }
    // The best, those that wait among them.
    INLINE Best best_of(int half, int lane) const {
        Best best = kept[half].load(lane);
#pragma unroll 1
        for (int n = 0; lanes_with(n < count[half]); ++n)
            if (n < count[half]) {
                const uint2 next = kept[half].waiting[n][lane];
                best.add(__int_as_float(next.x), next.y);
            }
        return best;
    }
    // Lets none wait any longer. What the other lanes of a row have counts, too: few are then worth
    // a look.
    INLINE void settle(int lane) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Best best = best_of(half, lane);
            kept[half].store(best, lane);
            count[half] = 0;
            bound[half] = fmaxf(bound[half], fmaxf(best.scores[N - 1], nth_best(best)));
        }
    }
    INLINE void write(int *selected, const Tile &at, int group, int lane) const {
#pragma unroll
        for (int half = 0; half < 2; ++half)
            store_chosen(selected, best_of(half, lane), half, at, group, lane);
    }
};

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_SELECTION / TOGETHER) select_blocks(
    const u16 *__restrict__ q, const u16 *__restrict__ keys, const int *__restrict__ table,
    int *__restrict__ selected, int tiles, int rows, int q_event, int q_head
) {
    __shared__ Kept memory[TOGETHER][2];
    const int lane = this_lane(), g = lane / 4, c = lane % 4, group = this_group();
    // The last blocks of a history have the most to look at: they go first.
    const Tile at(table, tiles - 1 - this_tile());
    if (at.empty()) return;
    const int reach = reach_of(at);
    Queries queries;
    queries.load(q, at, q_event, q_head, group, lane);
    Choosing choosing;
    choosing.begin(memory[warp_of_block()], lane);
    const int plane = rows * G * D;
    keys += (at.first_block_key * G + group) * D + place_of(0, c);
    BlockKeys here[EIGHTS];
    // Behind the last block, where nothing counts, stands that one.
    const auto load = [&](int first) {
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
            here[n].load(keys + min(first + 8 * n + g, reach - 1) * (G * D), plane);
    };
    if (reach > 0) load(0);
#pragma unroll 1
    for (int first = 0; first < reach; first += SPAN) {
        float scores[EIGHTS][4];
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n) here[n].score(scores[n], queries);
        load(first + SPAN);
        if (!CAUSAL || first + SPAN > reach) {
#pragma unroll
            for (int n = 0; n < EIGHTS; ++n)
                for (int i = 0; i < 4; ++i) {
                    const int block = first + 8 * n + 2 * c + i % 2;
                    if (block >= reach || (!CAUSAL && block == at.block)) scores[n][i] = -INFINITE;
                }
        }
        choosing.add(scores, first + 2 * c, lane);
    }
    choosing.write(selected, at, group, lane);
}
