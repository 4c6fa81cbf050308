// What the kernels share that find gradients of keys and values.

#define CHUNK_EVENTS (16 / R)   // events of 16 rows

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
