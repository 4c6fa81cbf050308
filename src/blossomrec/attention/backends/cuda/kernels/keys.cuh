// What the kernels share that find gradients of keys and values.

#define CHUNK_EVENTS (16 / R)   // events of 16 rows

// What the queries of a group have for one lane: rows are those of packed events.
struct Queries {
    const u16 *q, *grad;              // of the head of column g, numbers 4c to 4c + 3
    const u32 *gates;                 // of the head of column 2c; both paths in one word, no bias
    const float *lse, *shifts;
    int q_event, plane;               // plane: from the long-term to the short-term path

    INLINE Queries(
        const u16 *q, const u16 *grad, const u32 *gates, const float *lse,
        const float *shifts, int q_event, int q_head, int plane, int group, int lane
    ) : q_event(q_event), plane(plane) {
        const int g = lane / 4, c = lane % 4, row = group * R + g % R, column = group * R + 2 * c % R;
        this->q = q + row * q_head + 4 * c;
        this->grad = grad + row * D + 4 * c;
        this->gates = gates + column;
        this->lse = lse + column, this->shifts = shifts + column;
    }
};

// One path's numbers of the columns 2c and 2c + 1.
struct Path {
    float gate[2], lse[2], shift[2];

    template <int SHORT>
    INLINE void load(const Queries &from, const int (&event)[2]) {
        int place[2];
        for (int n = 0; n < 2; ++n) place[n] = event[n] * HEADS;
        u32 both[2];
        if (!UNION) load_two(both, from.gates, place);
        load_two(lse, from.lse + SHORT * from.plane, place);
        load_two(shift, from.shifts + SHORT * OF_SHORT * from.plane, place);
        for (int n = 0; n < 2; ++n) gate[n] = UNION ? 1.0f : SHORT ? high(both[n]) : low(both[n]);
    }
    // Adds weight times gate and the gradient of a score, of a query that is seen; returns what the
    // gradient of the bias, or of the gate, is the sum of.
    INLINE float weigh(float &weight, float &steep, float score, float slope, int n, bool seen) const {
        const float plain = exp_2(seen ? score - lse[n] : -INFINITE), share = gate[n] * plain;
        const float steeper = share * (slope - shift[n]);
        weight += share;
        steep += steeper;
        return UNION ? steeper : plain * slope;
    }
};

// Inverse lists: the choices of all events sorted by the block they chose, list after list. `order`
// has their places in the flattened selection, 64 bits each, `starts` where each list begins. What
// a list has beyond its first CHUNK entries is cut into chunks that have a warp and a sum each: the
// one that begins at place p has number p / CHUNK. No two have the same, as those of one list are
// CHUNK apart, and those of two lists more than that.
struct ListPart {
    int list, low = 0, high = 0;   // none where it is empty

    INLINE ListPart(const int *starts, const List *sorted, int chunk, int entries, int lists) {
        // Only the lists of the first and the last place can have a chunk that begins in between.
        const int first = chunk * CHUNK, last = min(first + CHUNK, entries) - 1;
        if (first >= entries) return;
        for (int turn = 0; turn < 2; ++turn) {
            list = sorted[turn ? last : first];
            if (list >= lists) return;
            const int start = starts[list], end = starts[list + 1];
            const int begin = start + max((first - start + CHUNK - 1) / CHUNK, 1) * CHUNK;
            if (begin > last || begin >= end) continue;
            low = begin, high = min(begin + CHUNK, end);
            return;
        }
    }
};

// Sums as rows of keys: each lane has four numbers side by side of the rows g and g + 8.
INLINE float4 row_of(const float (&x)[2 * STEPS][4], int s, int half) {
    return make_float4(
        x[2 * s][2 * half], x[2 * s][2 * half + 1],
        x[2 * s + 1][2 * half], x[2 * s + 1][2 * half + 1]);
}

#define SUM_STRIDE (4 * STEPS * 32)   // float4 of the sums of one chunk

INLINE void add_row(float (&x)[2 * STEPS][4], int s, int half, float4 y) {
    x[2 * s][2 * half] += y.x, x[2 * s][2 * half + 1] += y.y;
    x[2 * s + 1][2 * half] += y.z, x[2 * s + 1][2 * half + 1] += y.w;
}
