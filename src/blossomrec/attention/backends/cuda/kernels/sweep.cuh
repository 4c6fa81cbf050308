// A sweep over the blocks that the events of some units chose, from the first block to the last:
// each is fetched once for all of them. Warps side by side pass the same blocks at about the same
// time, where the first-level cache still has them.
//
// HELD: units that a warp holds at a time; as events of one have 32 choices at most, a lane keeps
// one of each.

#define NO_BLOCK 0x7fffffff

struct Sweep {
    int chosen[HELD];   // of event lane / N of each unit

    // `first`: event of the first unit.
    INLINE Sweep(const int *selected, const Tile &at, int group, int first, int lane) {
#pragma unroll
        for (int u = 0; u < HELD; ++u) {
            const int event = first + u * EVENTS + lane / N;
            chosen[u] = -1;
            if (lane < EVENTS * N && event < at.length)
                chosen[u] = selected[((at.start + event) * G + group) * N + lane % N];
        }
    }
    // The first block after this one that any event chose, the same in all lanes.
    INLINE int after(int block) const {
        int next = NO_BLOCK;
#pragma unroll
        for (int u = 0; u < HELD; ++u)
            if (chosen[u] > block) next = min(next, chosen[u]);
        return lowest(next);
    }
    // Lanes whose event of the unit chose the block, as bits.
    INLINE u32 lanes(int u, int block) const { return lanes_with(chosen[u] == block); }
};

// Whether the event of column 2c + i chose the block.
INLINE bool chose(u32 lanes, int c, int i) {
    constexpr u32 all = N == 32 ? 0xffffffffu : (1u << N % 32) - 1;
    return lanes >> (2 * c + i) / R * N & all;
}

// Scores with a block, those left that the long-term path sees.
INLINE void hide_unless_chosen(float (&scores)[4], u32 lanes, int block, const Unit &unit) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const bool has = chose(lanes, unit.c, i);
        const int distance = unit.events[i] - unit.g - block * SIZE;
        if (!has || (UNION && seen_twice(distance))) scores[i] = -INFINITE;
        if (!has || (UNION && seen_twice(distance - 8))) scores[i + 2] = -INFINITE;
    }
}

// Adds the product of keys and columns, in two sums: the second half does not wait for the first.
INLINE void multiply_by_halves(
    float (&scores)[4], const uint4 (&keys)[STEPS], const uint2 (&b)[STEPS]
) {
    float other[4];
    clear(other);
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        if (s % 2) product(other, keys[s], b[s].x, b[s].y);
        else product(scores, keys[s], b[s].x, b[s].y);
    }
    if (STEPS > 1)
        for (int i = 0; i < 4; ++i) scores[i] += other[i];
}

// The near pattern of a unit by its number in the tile.
INLINE NearPattern pattern_of(int number, int lane) {
    return NearPattern(lane / 4, lane % 4).later(number * EVENTS);
}

// As hide_unseen, of a unit's own pattern. Without branches, for which the next fetch would wait.
INLINE void hide_near(
    float (&scores)[4], float (&own)[4], const NearPattern &pattern, const float (&bias)[2],
    const Tile &at, int step, int g
) {
    const int block = at.block + step - OWN;
    for (int i = 0; i < 4; ++i) {
        const bool there = (block >= 0) & (CAUSAL || block * SIZE + g + i / 2 * 8 < at.length);
        const bool near = there & pattern.sees(i % 2, 0, OWN - step, i / 2);
        const bool is_own = there & pattern.sees_own(i % 2, 0, i / 2);
        if (UNION && step == OWN && !near) scores[i] -= bias[i % 2];
        if (step == OWN) own[i] = is_own ? scores[i] : -INFINITE;
        const bool seen = UNION && step == OWN ? is_own : near;
        scores[i] = seen ? scores[i] : -INFINITE;
    }
}

// Far keys of a unit.
struct FarRows {
    uint4 keys[STEPS], values[STEPS];
    bool met[4];   // whether the score of a row and a column is wanted

    // `first`: event of the unit.
    INLINE void load(
        int step, const u16 *k, const u16 *v, int k_event, int v_event, int first,
        const Tile &at, int lane
    ) {
        const FarKeys far(step, lane / 4, first, at.length);
        load_rows(
            keys, row_at(k, far.key[0], k_event), row_at(k, far.key[1], k_event), lane % 4, true,
            true);
        load_rows(
            values, row_at(v, far.key[0], v_event), row_at(v, far.key[1], v_event), lane % 4, true,
            true);
        for (int i = 0; i < 4; ++i)
            met[i] = far.held[i / 2] && (2 * (lane % 4) + i % 2) / R == far.event[i / 2];
    }
    INLINE void hide_unmet(float (&scores)[4]) const {
        for (int i = 0; i < 4; ++i)
            if (!met[i]) scores[i] = -INFINITE;
    }
};

INLINE void turn(uint4 (&x)[STEPS]) {
    for (int s = 0; s < STEPS; ++s) x[s] = turned(x[s]);
}
