// What the kernels that compute gradients of keys and values share.

#define CHUNK_EVENTS (16 / R)   // events of 16 rows

// Inverse lists hold the choices of all events by the block that they chose, in the order of events.
// `order` holds their indices in the flattened selection, and `bounds` where each list begins and
// ends there. The first CHUNK entries of a list belong to the warp of its block. The others are cut
// into chunks, each with a warp and sums of its own: a chunk that begins at entry p has the number
// p / CHUNK. No two chunks share a number, because those of one list begin CHUNK entries apart, and
// those of two lists more than that. `owners` holds the list of each chunk, -1 where there is none.
struct ListPart {
    int list, low = 0, high = 0;   // there is no such part where low == high

    INLINE ListPart(const int *bounds, const int *owners, int chunk, int chunks) {
        list = chunk < chunks ? owners[chunk] : -1;
        if (list < 0) return;
        const int begin = bounds[2 * list], end = bounds[2 * list + 1];
        low = begin + (chunk * CHUNK - begin + CHUNK - 1) / CHUNK * CHUNK;
        high = min(low + CHUNK, end);
    }
};

// Two products C side by side as a factor A.
INLINE uint4 halves_as_a(const float (&x)[2][4]) {
    return make_uint4(
        pair(x[0][0], x[0][1]), pair(x[0][2], x[0][3]),
        pair(x[1][0], x[1][1]), pair(x[1][2], x[1][3]));
}

// Sums as rows of keys: a lane has four adjacent numbers of the row g or g + 8.
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

// Writes the sums of a chunk, which the warp of the block adds to its own.
INLINE void store_sums(
    float4 *sums, int chunk, const float (&k)[2 * STEPS][4], const float (&v)[2 * STEPS][4], int lane
) {
    float4 *out = row_at(sums, chunk, SUM_STRIDE) + lane;
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            out[(2 * s + half) * 32] = row_of(k, s, half);
            out[(2 * STEPS + 2 * s + half) * 32] = row_of(v, s, half);
        }
}

// Adds the sums of all chunks of the list from `low` to `high`.
INLINE void add_chunks(
    float (&k)[2 * STEPS][4], float (&v)[2 * STEPS][4], const float4 *sums, int low, int high,
    int lane
) {
#pragma unroll 1
    for (int at = low + CHUNK; at < high; at += CHUNK) {
        const float4 *in = row_at(sums, at / CHUNK, SUM_STRIDE) + lane;
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                add_row(k, s, half, in[(2 * s + half) * 32]);
                add_row(v, s, half, in[(2 * STEPS + 2 * s + half) * 32]);
            }
    }
}
