// Rows of queries on their way through shared memory: while a warp works on sixteen of them, the
// next ones are fetched without any register. Tensor cores take them from there as they are or
// transposed. Numbers of a head stand in their own order here.

#ifndef EMULATED
typedef u32 Shared;   // an address in shared memory

INLINE Shared shared_address(const void *x) { return (u32)__cvta_generic_to_shared(x); }

// Four matrices 8 x 8, of which lanes 0 to 7 give the rows of the first, 8 to 15 of the second: each
// lane gets row g, columns 2c and 2c + 1 of all.
template <int Offset>
INLINE uint4 matrices(Shared row) {
    uint4 x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(row), "n"(Offset) : "memory");
    return x;
}

// Of their transposes.
template <int Offset>
INLINE uint4 turned_matrices(Shared row) {
    uint4 x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(row), "n"(Offset) : "memory");
    return x;
}

// Begins to copy to shared memory, or zeros where nothing is held.
template <int Offset>
INLINE void copy_16(Shared to, const void *from, bool held) {
    asm volatile("cp.async.cg.shared.global [%0 + %1], [%2], 16, %3;"
        :: "r"(to), "n"(Offset), "l"(from), "r"(held ? 16 : 0) : "memory");
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

#define PIECES (D / 8)           // sixteen bytes each, of a row of a head
#define ROW_BYTES (2 * D)
#define ROWS_BYTES (16 * ROW_BYTES)
#define ROWS_AT_ONCE (32 / PIECES)   // rows of which a warp fetches all pieces at once

// Sixteen rows (event, head), and what belongs to each; side by side in STAGES of a ring.
struct alignas(128) Stage {
    uint4 q[16 * PIECES], grad[16 * PIECES];
    int entry[16];           // place in the selection, of neighbours event * G * N; -1 for none
    float lse[16], shift[16];
    u32 gates[16];
};

struct alignas(128) StageOfKeys {
    uint4 rows[16 * PIECES];
};

// Where a piece of a row is inside sixteen rows, so that eight rows of one piece share no bank.
INLINE u32 bytes_to(int row, int piece) {
    return row * ROW_BYTES + 16 * (piece ^ (row * PIECES / 8 & (PIECES - 1)));
}

// Of the row whose address this lane gives, numbers 0 to 7 or 8 to 15: the first eight rows come
// first. The numbers 16s and on are at `at ^ 32 * s`.
INLINE u32 bytes_of_lane(int lane) { return bytes_to(lane / 16 * 8 + lane % 8, lane / 8 % 2); }

// Calls `copy` with this lane's share of sixteen rows: row, and where its piece is for the lane's
// first row at `bytes_to(lane / PIECES, lane % PIECES)`: what that is to be combined with.
template <int Number, typename Copy>
INLINE void fetch_rows(Shared to, int lane, const Copy &copy) {
    if constexpr (Number < PIECES / 2) {
        constexpr u32 other = 16 * (4 * Number & (PIECES - 1));
        copy.template fetch<512 * Number>(to ^ other, lane / PIECES + Number * ROWS_AT_ONCE);
        fetch_rows<Number + 1>(to, lane, copy);
    }
}

// Numbers 4c' to 4c' + 3 of a row for each lane, where it had 2c, 2c + 1 of the first and of the
// second eight: those at 16s + store_at(c).
INLINE uint2 side_by_side(u32 first, u32 second, int c) {
    const u32 other = across(c % 2 ? first : second, 1);
    return c % 2 ? make_uint2(other, second) : make_uint2(first, other);
}

INLINE int store_at(int c) { return c % 2 * 8 + c / 2 * 4; }
