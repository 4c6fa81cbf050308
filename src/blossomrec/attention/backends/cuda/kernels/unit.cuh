// Of two paths with a gate each, or of a union, where the short-term path has its keys in the same
// softmax and adds a bias to their scores. What both paths see, the long-term path leaves out.
#define SOFTMAXES (UNION ? 1 : 2)
#define OF_SHORT (SOFTMAXES - 1)   // softmax of the short-term path; that of the other is the first
#if UNION
typedef u16 Gates;                 // the bias
#else
typedef u32 Gates;                 // of both paths
#endif

// A unit: a few events as queries, the columns of all products with what they see.

struct Unit {
    int lane, g, c;
    int event;       // of column g, where a factor B has it
    int head;        // of column g, inside the group
    bool inside;
    int events[2];   // of the columns 2c and 2c + 1, where C has them
    int heads[2];

    INLINE Unit(int lane, int first, int length) : lane(lane), g(lane / 4), c(lane % 4) {
        event = first + g / R, head = g % R, inside = event < length;
        for (int i = 0; i < 2; ++i) {
            events[i] = first + (2 * c + i) / R;
            heads[i] = (2 * c + i) % R;
        }
    }
    // Whether column g is of the e-th event.
    INLINE bool owns(int e) const { return g / R == e; }
};

// Queries, or the gradient of the output, as a factor B.
INLINE void load_columns(uint2 (&b)[STEPS], const u16 *row, const Unit &unit) {
    for (int s = 0; s < STEPS; ++s) b[s] = four(row + 16 * s + 4 * unit.c, unit.inside);
}

// Adds the product of keys and columns.
INLINE void multiply(float (&scores)[4], const uint4 (&keys)[STEPS], const uint2 (&b)[STEPS]) {
    for (int s = 0; s < STEPS; ++s) product(scores, keys[s], b[s].x, b[s].y);
}

INLINE void multiply_own(
    float (&scores)[4], const uint4 (&keys)[STEPS], const uint2 (&b)[STEPS], bool owned
) {
    for (int s = 0; s < STEPS; ++s) {
        const uint2 columns = zero_unless(owned, b[s]);
        product(scores, keys[s], columns.x, columns.y);
    }
}

// Positions of the far keys in the rows g and g + 8 of a step: those of the first events come
// first, POWERS of them each. Steps beyond the powers on one side are those of the other side.
struct FarKeys {
    int key[2];     // some key of the history where none is held
    bool held[2];
    int event[2];   // which event of the unit sees the row

    INLINE FarKeys(int step, int g, int first, int length) {
        const int sign = step < FAR_STEPS ? -1 : 1;
        for (int i = 0; i < 2; ++i) {
            const int row = g + 8 * i;
            event[i] = row / POWERS;
            const int exponent = FIRST_FAR + step % FAR_STEPS * POWERS + row % POWERS;
            const int query = first + event[i];
            const int far = exponent < KNOWN ? query + sign * POWER(exponent) : -1;
            held[i] = far >= 0 && far < length && query < length;
            key[i] = max(min(far, length - 1), 0);
        }
    }
};

INLINE void load_far(
    uint4 (&rows)[STEPS], const u16 *x, const FarKeys &far, int stride, int c
) {
    for (int s = 0; s < STEPS; ++s)
        rows[s] = rows_as_a(
            four(row_at(x, far.key[0], stride) + 16 * s + 4 * c, true),
            four(row_at(x, far.key[1], stride) + 16 * s + 4 * c, true));
}

#if CAUSAL
#define NEAR_STEPS (NEAR + 1)
#define FAR_TOTAL FAR_STEPS
#else
#define NEAR_STEPS (2 * NEAR + 1)
#define FAR_TOTAL (2 * FAR_STEPS)
#endif
// The step of the near blocks that is the own one: the blocks before it come first.
#define OWN NEAR

// Whether any event of a tile has a far key in this step.
INLINE bool far_step_needed(int step, int first, int length) {
    const int exponent = FIRST_FAR + step % FAR_STEPS * POWERS;
    if (exponent >= KNOWN) return false;
    const int reach = step < FAR_STEPS ? first + SIZE - 1 : length - 1 - first;
    return POWER(exponent) <= reach;
}

// Where a block of the history stands, whose first block is at `home`.
INLINE const uint4 *block_at(const uint4 *home, int block) {
    return row_at(home, block, BLOCK_STRIDE);
}

// Which blocks a unit's events choose, of each N: a lane has one choice, EVENTS * N lanes do. -1
// for none. `first`: event of the unit.
INLINE int load_choice(const int *selected, const Tile &at, int group, int first, int lane) {
    const int event = first + lane / N;
    if (lane >= EVENTS * N || event >= at.length) return -1;
    return selected[((at.start + event) * G + group) * N + lane % N];
}

struct ChosenBlocks {
    int block;    // some block of the history where there is none
    u32 missing;  // lanes of events that lack a choice, as bits

    INLINE ChosenBlocks(int choice, int lane) {
        block = max(choice, 0), missing = lanes_with(choice < 0 && lane < EVENTS * N);
    }
    // Where the n-th block stands: the first choices of all events come first.
    INLINE const uint4 *place(const uint4 *home, int n) const {
        return block_at(home, from_lane(block, n % EVENTS * N + n / EVENTS));
    }
    // Whether the long-term path sees all keys of the blocks.
    INLINE bool complete() const { return !UNION && !missing; }
    // Scores with the j-th choices, those left that the long-term path sees.
    INLINE void hide_unseen(float (&scores)[4], int j, const Unit &unit) const {
        for (int i = 0; i < 2; ++i) {
            const int lane = (2 * unit.c + i) / R * N + j;
            const bool has = !(missing >> lane & 1);
            const int distance =
                UNION ? unit.events[i] - unit.g - from_lane(block, lane) * SIZE : 0;
            if (!has || (UNION && seen_twice(distance))) scores[i] = -INFINITE;
            if (!has || (UNION && seen_twice(distance - 8))) scores[i + 2] = -INFINITE;
        }
    }
};

// The near block of a step; the own one where there is none.
INLINE int near_block(const Tile &at, int step) {
    const int block = at.block + step - OWN;
    return block >= 0 && block * SIZE < at.length ? block : at.block;
}

// Scores that the short-term path sees begin with the bias.
INLINE void start(float (&scores)[4], const float (&bias)[2]) {
    for (int i = 0; i < 4; ++i) scores[i] = bias[i % 2];
}

// Scores with a near block, those left that the short-term path sees. Of the own block ``own`` gets
// those that the long-term path sees, or, of a union, those that either path sees are left.
// ``first``: of the unit inside the tile.
INLINE void hide_unseen(
    float (&scores)[4], float (&own)[4], const NearPattern &pattern, const float (&bias)[2],
    const Tile &at, int first, int step, int g
) {
    const int block = at.block + step - OWN;
    for (int i = 0; i < 4; ++i) {
        // Where nothing is seen ahead, no event sees a key behind the end.
        const bool there = block >= 0 && (CAUSAL || block * SIZE + g + i / 2 * 8 < at.length);
        if (UNION && step == OWN) {
            if (!pattern.sees(i % 2, first, 0, i / 2)) scores[i] -= bias[i % 2];
            if (!there || !pattern.sees_own(i % 2, first, i / 2)) scores[i] = -INFINITE;
            continue;
        }
        if (step == OWN)
            own[i] = there && pattern.sees_own(i % 2, first, i / 2) ? scores[i] : -INFINITE;
        if (!there || !pattern.sees(i % 2, first, OWN - step, i / 2)) scores[i] = -INFINITE;
    }
}

// Places in [T, H] of the columns 2c and 2c + 1; those of an event that is there.
INLINE void places_of(int (&place)[2], const Unit &unit, const Tile &at, int group) {
    for (int i = 0; i < 2; ++i)
        place[i] = (at.start + min(unit.events[i], at.length - 1)) * HEADS + group * R
            + unit.heads[i];
}

// Gates of both paths, of each column; a union has none.
INLINE void load_gates(float (&gate)[2][2], const Gates *gates, const int (&place)[2]) {
#if UNION
    for (int i = 0; i < 2; ++i) gate[0][i] = gate[1][i] = 1.0f;
#else
    u32 both[2];
    load_two(both, gates, place);
    for (int i = 0; i < 2; ++i) gate[0][i] = low(both[i]), gate[1][i] = high(both[i]);
#endif
}

// The bias of a union as scores before they are scaled, of each column.
INLINE void load_bias(
    float (&bias)[2], const Gates *gates, const Unit &unit, const Tile &at, int group, float scale
) {
#if UNION
    int place[2];
    float given[2];
    places_of(place, unit, at, group);
    load_two(given, gates, place);
    // As the scale is log2(e) / sqrt(D), this is sqrt(D) times the bias.
    for (int i = 0; i < 2; ++i) bias[i] = given[i] * (scale * (D * LN_2));
#else
    bias[0] = bias[1] = 0.0f;
#endif
}

// Writes a result C whose rows are the numbers of a head, 16 at a time.
INLINE void store_columns(u16 *row, const float (&c)[4], const Unit &unit, int s) {
    const uint2 numbers = as_rows(c);
    if (unit.inside) *reinterpret_cast<uint2 *>(row + 16 * s + 4 * unit.c) = numbers;
}
