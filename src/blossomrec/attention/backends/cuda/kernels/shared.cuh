// Rows of heads in shared memory: they are fetched while a warp works on others, and take no registers
// meanwhile. Tensor cores read them from there, as they are or transposed. The numbers of a head keep
// their own order here.

#ifndef EMULATED
typedef u32 Shared;   // an address in shared memory

INLINE Shared shared_address(const void *x) { return (u32)__cvta_generic_to_shared(x); }

// Reads four matrices 8 x 8: lanes 0 to 7 give the addresses of the first one's rows, lanes 8 to 15
// of the second one's. Each lane gets row g, columns 2c and 2c + 1, of all four.
template <int Offset>
INLINE uint4 matrices(Shared row) {
    uint4 x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(row), "n"(Offset) : "memory");
    return x;
}

// Reads the transposes of such matrices.
template <int Offset>
INLINE uint4 turned_matrices(Shared row) {
    uint4 x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(row), "n"(Offset) : "memory");
    return x;
}

// Begins a copy to shared memory, or writes zeros where nothing is held.
template <int Offset>
INLINE void copy_16(Shared to, const void *from, bool held) {
    asm volatile("{ .reg .pred none; setp.eq.s32 none, %3, 0;\n"
        "cp.async.cg.shared.global [%0 + %1], [%2], 16, none; }"
        :: "r"(to), "n"(Offset), "l"(from), "r"((int)held) : "memory");
}

INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all copies of the warp except those of the last `Later` commits.
template <int Later>
INLINE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(Later) : "memory");
    __syncwarp();
}

INLINE uint2 two_words(Shared at) {
    uint2 x;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
    return x;
}

// Writes a number and a word if the number is above a bound, and moves `to` on by `Bytes`.
template <int Bytes>
INLINE void put_if_above(Shared &to, float x, float bound, int word) {
    asm volatile("{ .reg .pred above; setp.gt.f32 above, %1, %2;\n"
        "@above st.shared.v2.b32 [%0], {%4, %3}; @above add.u32 %0, %0, %5; }"
        : "+r"(to) : "f"(x), "f"(bound), "r"(word), "r"(__float_as_int(x)), "n"(Bytes) : "memory");
}
#endif

#define PIECES (D / 8)           // of sixteen bytes, in a row of a head
#define ROW_BYTES (2 * D)
#define ROWS_BYTES (16 * ROW_BYTES)
#define ROWS_AT_ONCE (32 / PIECES)   // rows that one load of each lane fetches

// Offset of a piece of a row inside sixteen rows: the same piece of eight rows lies in eight
// different groups of banks.
INLINE u32 bytes_to(int row, int piece) {
    return row * ROW_BYTES + 16 * (piece ^ (row * PIECES / 8 & (PIECES - 1)));
}

// Offset of the row whose address this lane gives: numbers 0 to 7 of rows 0 to 7 first, then numbers
// 8 to 15 of them, then rows 8 to 15. The numbers from 16s on are at the offset `^ 32 * s`.
INLINE u32 bytes_of_lane(int lane) { return bytes_to(lane / 16 * 8 + lane % 8, lane / 8 % 2); }

// Calls `copy` for each row that this lane fetches a piece of, with the piece's address. `to` is the
// address of the lane's first piece: the first row and `bytes_to(lane / PIECES, lane % PIECES)`.
template <int Number, int Rows = 16, typename Copy>
INLINE void fetch_rows(Shared to, int lane, const Copy &copy) {
    if constexpr (Number * ROWS_AT_ONCE < Rows) {
        constexpr u32 other = 16 * (4 * Number & (PIECES - 1));
        copy.template fetch<512 * Number>(to ^ other, lane / PIECES + Number * ROWS_AT_ONCE);
        fetch_rows<Number + 1, Rows>(to, lane, copy);
    }
}

// Exchanges numbers between lanes: each has the numbers 2c and 2c + 1 of the first eight and of the
// second eight of a row, and gets four adjacent ones, those from 16s + store_at(c) on.
INLINE uint2 side_by_side(u32 first, u32 second, int c) {
    const u32 other = across(c % 2 ? first : second, 1);
    return c % 2 ? make_uint2(other, second) : make_uint2(first, other);
}

INLINE int store_at(int c) { return c % 2 * 8 + c / 2 * 4; }
