// Selection on Hopper: one warp is one block of queries and one group, the warps of a block of threads
// share the block keys, which pass through a ring in shared memory. Tensor cores score KEYS of them at
// a time for the rows of four warps. Few scores pass what the N best of their row have: they wait in
// shared memory until some lane has no room for more, and then all lanes settle at once which are
// kept.
//
// BY_HEAD: queries of the R heads of a group, one or two, are multiplied as they are, and their scores
// are summed up: which blocks score highest is the same for a sum as for a mean. Else their mean, a
// float32, is the sum of three bf16, and the smallest products come first.
#define QUERY_PARTS (BY_HEAD ? R : 3)
#define FEW 4                        // scores of a row that a lane may leave waiting
#define WAITING (FEW + 2 * EIGHTS)   // those that it has room for
#define PLACE (32 * 8)               // bytes of one of all lanes
#define SHARED_ROWS (STAGE_KEYS / TOGETHER)   // of a stage, that each warp fetches

// Queries of sixteen events as factors A, their numbers in their own order.
INLINE void load_queries(
    uint4 (&queries)[QUERY_PARTS][STEPS], const u16 *q, const Tile &at, int q_event, int q_head,
    int group, int lane
) {
    const int g = lane / 4, c = lane % 4, event = at.first() + g;
    const u16 *row = row_at(q, at.start + event, q_event) + group * R * q_head + 2 * c;
    const bool held[2] = {event < at.length, event + 8 < at.length};
#if BY_HEAD
#pragma unroll
    for (int head = 0; head < R; ++head)
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            u32 x[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u16 *two = row + i % 2 * 8 * q_event + head * q_head + 16 * s + i / 2 * 8;
                x[i] = held[i % 2] ? *reinterpret_cast<const u32 *>(two) : 0;
            }
            queries[head][s] = make_uint4(x[0], x[1], x[2], x[3]);
        }
#else
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        u32 x[4][3];
        for (int i = 0; i < 4; ++i) {
            const u16 *two = row + i % 2 * 8 * q_event + 16 * s + i / 2 * 8;
            split_mean(x[i], two, q_head, held[i % 2]);
        }
        for (int p = 0; p < 3; ++p)
            queries[2 - p][s] = make_uint4(x[0][p], x[1][p], x[2][p], x[3][p]);
    }
#endif
}

// Block keys from the first row of a stage on, at the piece that this lane fetches. Behind the last
// one stands that one.
struct CopyKeys {
    const u16 *keys;
    int first, last;

    template <int Offset>
    INLINE void fetch(Shared to, int row) const {
        copy_16<Offset>(to, row_at(keys, min(first + row, last), G * D), true);
    }
};

static_assert(SHARED_ROWS % ROWS_AT_ONCE == 0, "no warp fetches rows of another");

// What is multiplied at once, and what is fetched at once.
struct alignas(1024) Part {
    uint4 pieces[KEYS * PIECES];
};
struct Stage {
    Part parts[STAGE_KEYS / KEYS];
};

struct Memory {
    Stage ring[STAGES];
    uint2 waiting[TOGETHER][2][WAITING][32];
};
static_assert(sizeof(Memory) == SHARED, "as much as is given at launch");

// What a lane has seen of one row, two of each eight blocks.
struct Row {
    Best best;
    float bound = -INFINITE;   // what a score has to pass
    // Scores and blocks that wait, from `first` on; each lane has its own column.
    Shared first, next;

    INLINE explicit Row(Shared memory) : first(memory), next(memory) {}

    // As many of a row's scores as it has lanes, and N is no more, are as high as the lowest of what
    // is highest in each lane.
    INLINE void raise_bound(const float (&scores)[EIGHTS][4], int half) {
        float lowest = scores[0][2 * half];
#pragma unroll
        for (int n = 1; n < 2 * EIGHTS; ++n)
            lowest = fmaxf(lowest, scores[n / 2][2 * half + n % 2]);
        for (int mask = 1; mask < 4; mask *= 2) lowest = fminf(lowest, across(lowest, mask));
        // A little less, so that this score itself passes.
        bound = fmaxf(bound, lowest - fabsf(lowest) * 0x1p-20f - 0x1p-100f);
    }
    // Scores of the blocks from `block` on, of this lane two of each eight. Each is looked at by
    // itself: in most stages some lane has one that passes, and all would wait for it.
    INLINE void add(const float (&scores)[EIGHTS][4], int half, int block) {
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                put_if_above<PLACE>(next, scores[n][2 * half + i], bound, block + 8 * n + i);
    }
    INLINE bool has_many() const { return next > first + FEW * PLACE; }
};

// Lets none of both rows wait any longer.
INLINE void empty(Row (&rows)[2]) {
#pragma unroll 1
    for (int at = 0; any_lane(rows[0].first + at < rows[0].next || rows[1].first + at < rows[1].next);
         at += PLACE)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Row &row = rows[half];
            const uint2 x = two_words(row.first + at);
            row.best.add_in_step(row.first + at < row.next ? __int_as_float(x.x) : -INFINITE, x.y);
        }
    for (int half = 0; half < 2; ++half) rows[half].next = rows[half].first;
}

// What the other lanes of a row have counts, too: few are then worth a look.
INLINE void settle(Row (&rows)[2]) {
    empty(rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Row &row = rows[half];
        row.bound = fmaxf(row.bound, fmaxf(row.best.scores[N - 1], nth_best(row.best)));
    }
}

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_SELECTION / TOGETHER) select_blocks(
    const u16 *__restrict__ q, const u16 *__restrict__ keys, const int *__restrict__ table,
    int *__restrict__ selected, int tiles, int rows, int q_event, int q_head
) {
    SHARED_MEMORY(Memory, memory);
    const int lane = this_lane(), c = lane % 4, warp = warp_of_block(), group = this_group();
    // The last blocks of a history have the most to look at: they go first.
    const int number = tiles - 1 - this_tile();
    const Tile at(table, number), other(table, number + warp - lane % TOGETHER);
    // Rows of the block keys that this warp chooses among, and all warps of the block of threads.
    const int reach = reach_of(at), begin = at.first_block_key, other_reach = reach_of(other);
    const int first_row = lowest(other_reach > 0 ? other.first_block_key : 1 << 30);
    const int end_row = -lowest(other_reach > 0 ? -(other.first_block_key + other_reach) : 0);
    const int piece = lane % PIECES;
    CopyKeys copy{
        in_registers(keys + group * D + 8 * piece), first_row + SHARED_ROWS * warp, end_row - 1
    };
    const Shared ring = shared_address(memory.ring);
    const Shared own = ring + SHARED_ROWS * ROW_BYTES * warp + bytes_to(lane / PIECES, piece);
    Meeting meeting(warp / WARPGROUP);
    u32 to = 0, from = 0;   // what is written and read next, as offsets
    const auto fetch = [&] {
        if (copy.first < end_row) fetch_rows<0, SHARED_ROWS>(own + to, lane, copy);
        commit_copies();
        copy.first += STAGE_KEYS;
        to = to + sizeof(Stage) < sizeof memory.ring ? to + sizeof(Stage) : 0;
    };
    for (int n = 0; n < STAGES - 2; ++n) fetch();
    uint4 queries[QUERY_PARTS][STEPS];
    load_queries(queries, q, at, q_event, q_head, group, lane);
    // Rows g and g + 8.
    Row seen[2] = {
        Row(shared_address(&memory.waiting[warp][0][0][lane])),
        Row(shared_address(&memory.waiting[warp][1][0][lane]))
    };
    // This warp is done with the stage that it has read, and its part of the next one is there. The
    // one before is nobody's any longer, and is overwritten.
    const auto go_on = [&] {
        wait_for_copies<STAGES - 3>();
        show_products();
        meeting.arrive();
        fetch();
    };
    const auto at_stage = [&] { return STAGE_KEYS == KEYS || from % sizeof(Stage) == 0; };
    if (first_row < end_row) go_on();
#pragma unroll 1
    for (int row = first_row; row < end_row; row += KEYS) {
        if (at_stage()) meeting.wait();
        float scores[EIGHTS][4];
        begin_products();
#pragma unroll
        for (int p = 0; p < QUERY_PARTS; ++p)
#pragma unroll
            for (int s = 0; s < STEPS; ++s)
                multiply_keys(scores, queries[p][s], ring + from, s, p + s > 0);
        end_products();
        wait_for_products(scores);
        from = from + sizeof(Part) < sizeof memory.ring ? from + sizeof(Part) : 0;
        if (row + KEYS < end_row && at_stage()) go_on();
        const int first = row - begin;   // block of the history
        if (first >= reach || first + KEYS <= 0) continue;
        if (!CAUSAL || first < 0 || first + KEYS > reach) {
#pragma unroll
            for (int n = 0; n < EIGHTS; ++n)
                for (int i = 0; i < 4; ++i) {
                    const int block = first + 8 * n + 2 * c + i % 2;
                    if ((u32)block >= (u32)reach || (!CAUSAL && block == at.block))
                        scores[n][i] = -INFINITE;
                }
        }
        if (first < KEYS)
            for (int half = 0; half < 2; ++half) seen[half].raise_bound(scores, half);
        for (int half = 0; half < 2; ++half) seen[half].add(scores, half, first + 2 * c);
        if (any_lane(seen[0].has_many() || seen[1].has_many())) settle(seen);
    }
    empty(seen);
    for (int half = 0; half < 2; ++half)
        store_chosen(selected, seen[half].best, half, at, group, lane);
}
