// Rows of queries on their way through shared memory: while a warp works on sixteen of them, the
// next ones are fetched without any register. Tensor cores take them from there as they are or
// transposed. Numbers of a head stand in their own order here.

#ifndef EMULATED
INLINE u32 shared_address(const void *x) { return (u32)__cvta_generic_to_shared(x); }

// Four matrices 8 x 8, of which lanes 0 to 7 give the rows of the first, 8 to 15 of the second: each
// lane gets row g, columns 2c and 2c + 1 of all.
INLINE uint4 matrices(const uint4 *row) {
    uint4 x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(shared_address(row)) : "memory");
    return x;
}

// Of their transposes.
INLINE uint4 turned_matrices(const uint4 *row) {
    uint4 x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(shared_address(row)) : "memory");
    return x;
}

// Begin to copy to shared memory; zeros where nothing is held.
INLINE void copy_16(void *to, const void *from, bool held) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(shared_address(to)), "l"(from), "r"(held ? 16 : 0) : "memory");
}

INLINE void copy_4(void *to, const void *from, bool held) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
        :: "r"(shared_address(to)), "l"(from), "r"(held ? 4 : 0) : "memory");
}

INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all copies of the warp have come but those of the last `Later` that were committed.
template <int Later>
INLINE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(Later) : "memory");
    __syncwarp();
}
#endif

#define PIECES (D / 8)   // sixteen bytes each, of a row of a head

// Sixteen rows (event, head), and what belongs to each; side by side in STAGES of a ring.
struct Stage {
    uint4 q[16 * PIECES], grad[16 * PIECES];
    int entry[16];           // place in the selection, of neighbours event * G * N; -1 for none
    float lse[16], shift[16];
    u32 gates[16];
};

// Where a piece of a row is, so that eight rows of one piece share no bank.
INLINE int piece_at(int row, int piece) {
    return row * PIECES + (piece ^ (row * PIECES / 8 & (PIECES - 1)));
}

// Four matrices 8 x 8 of the numbers 16s to 16s + 15: of the first eight rows, then of the others.
INLINE uint4 matrices_of(const uint4 *rows, int s, int lane) {
    return matrices(rows + piece_at(lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
}

INLINE uint4 turned_matrices_of(const uint4 *rows, int s, int lane) {
    return turned_matrices(rows + piece_at(lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
}

// Calls `copy` with this lane's share of sixteen rows: row, place of a piece, its first number.
template <typename Copy>
INLINE void fetch_rows(int lane, Copy copy) {
    const int piece = lane % PIECES;
#pragma unroll
    for (int n = 0; n < PIECES / 2; ++n) {
        const int row = lane / PIECES + n * (32 / PIECES);
        copy(row, piece_at(row, piece), 8 * piece);
    }
}

// Numbers 4c' to 4c' + 3 of a row for each lane, where it had 2c, 2c + 1 of the first and of the
// second eight: those at 16s + store_at(c).
INLINE uint2 side_by_side(u32 first, u32 second, int c) {
    const u32 other = across(c % 2 ? first : second, 1);
    return c % 2 ? make_uint2(other, second) : make_uint2(first, other);
}

INLINE int store_at(int c) { return c % 2 * 8 + c / 2 * 4; }
