// What the kernels share. Each warp works alone: there are no barriers between warps, and none reads
// what another wrote to shared memory. The TOGETHER warps of a thread block share a cache. Only those
// of hopper_selection.cu work together.
//
// Matrices live in the registers of a warp as tensor cores take them (mma.m16n8k16). A lane is
// (g, c) = (lane / 4, lane % 4):
//   A, 16 x 16, a uint4: .x row g, .y row g + 8, both columns 2c, 2c + 1; .z, .w the same rows,
//      columns 2c + 8, 2c + 9;
//   B, 16 x 8, two words: column g, rows 2c, 2c + 1 and rows 2c + 8, 2c + 9;
//   C, 16 x 8, four floats: row g, columns 2c, 2c + 1, then row g + 8.
//
// The order of the numbers of a head is free as long as both factors share it. A lane takes four
// that lie side by side, 4c to 4c + 3, in the places 2c, 2c + 1, 2c + 8, 2c + 9: one load of eight
// bytes fills them. PAIRED: those of two steps lie side by side, and one load fills both.
//
// Queries are columns: 8 / R events of R heads each are a unit, EVENTS x R = 8. Keys are rows, so
// that the products need no copy of a block for each event: what belongs to one event alone is
// multiplied by the unit's queries with the others' columns zeroed.
//
// Constants given when compiled: R query heads a group, G groups, D numbers a head, N blocks
// selected, WINDOW, NEAR, FIRST_FAR, FAR_STEPS and DISTANCES of the short-term path, CAUSAL, UNION,
// BF16, PAIRED.

typedef unsigned int u32;
typedef unsigned short u16;

#define SIZE 16                // events in a block
// Rows and numbers are counted in 32 bits: T * H * d must stay below 2^31.
#define HEADS (G * R)
#define STEPS (D / 16)         // matrix products over the numbers of a head
#define EVENTS (8 / R)         // events of a unit
#define UNITS (16 / EVENTS)    // units of a tile
#define POWERS (16 / EVENTS)   // far powers of two of each event that one product takes
#define INFINITE __int_as_float(0x7f800000)
#define LN_2 0.6931471805599453f

#ifndef EMULATED
#define INLINE __device__ __forceinline__
#if BF16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif

INLINE void product(float (&c)[4], const uint4 &a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Transposes an 8 x 8 matrix of which each lane has row g, columns 2c and 2c + 1.
INLINE u32 turned(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

INLINE u32 pair(float low, float high) {
    u32 x;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}

INLINE float number_of_f16(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

INLINE float exp_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float quotient(float x, float y) {
    float z;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}

INLINE float log_2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float from_lane(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
INLINE int from_lane(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
INLINE float across(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE int across(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE u32 across(u32 x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE u32 lanes_with(bool x) { return __ballot_sync(0xffffffffu, x); }
INLINE bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }
// The same number, which the compiler takes for another: what is read by it is read once more, not
// kept in registers.
INLINE int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
INLINE int lowest(int x) {
    int y;
    asm volatile("redux.sync.min.s32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
}

// One instruction, where the compiler may make several of a product that it knows more of.
INLINE long long wide_product(int x, int y) {
    long long z;
    asm("mul.wide.s32 %0, %1, %2;" : "=l"(z) : "r"(x), "r"(y));
    return z;
}

// What is worked out once: the compiler does not compute it anew from its parts at each use.
INLINE unsigned long long in_registers(unsigned long long x) {
    asm("" : "+l"(x));
    return x;
}

template <typename T>
INLINE T *in_registers(T *x) {
    asm("" : "+l"(x));
    __builtin_assume(__isGlobal(x));
    return x;
}
#endif

INLINE float number_of_bf16(u16 x) { return __int_as_float((u32)x << 16); }
INLINE float number(u16 x) { return BF16 ? number_of_bf16(x) : number_of_f16(x); }
INLINE float low(u32 x) { return number((u16)(x & 0xffff)); }
INLINE float high(u32 x) { return number((u16)(x >> 16)); }

// Of queries, where products are of another type than they are.
INLINE float query_low(u32 x) {
    const u16 half = (u16)(x & 0xffff);
    return QUERY_BF16 ? number_of_bf16(half) : number_of_f16(half);
}

INLINE float query_high(u32 x) { return query_low(x >> 16); }

INLINE void clear(float (&x)[4]) { x[0] = x[1] = x[2] = x[3] = 0.0f; }

// Reduce over the rows of C: every lane gets the result of its two columns.
INLINE float sum_of_rows(float x) {
    for (int mask = 4; mask < 32; mask *= 2) x += across(x, mask);
    return x;
}

INLINE float max_of_rows(float x) {
    for (int mask = 4; mask < 32; mask *= 2) x = fmaxf(x, across(x, mask));
    return x;
}

// The transpose of a 16 x 16 matrix of the form A.
INLINE uint4 turned(uint4 a) {
    return make_uint4(turned(a.x), turned(a.z), turned(a.y), turned(a.w));
}

// Columns of weights C as rows of a factor B.
INLINE uint2 as_rows(const float (&c)[4]) {
    return make_uint2(turned(pair(c[0], c[1])), turned(pair(c[2], c[3])));
}

INLINE uint2 zero_unless(bool held, uint2 x) { return held ? x : make_uint2(0, 0); }

// Row of an array whose rows stand `stride` numbers apart: one multiplication with a wide result.
template <typename T>
INLINE T *row_at(T *x, int row, int stride) {
    return (T *)((char *)x + wide_product(row, stride * sizeof(T)));
}

// Numbers of the columns 2c and 2c + 1: heads of one event stand side by side.
INLINE void load_two(float (&x)[2], const float *from, const int (&place)[2]) {
#if R > 1
    const float2 both = *reinterpret_cast<const float2 *>(from + place[0]);
    x[0] = both.x, x[1] = both.y;
#else
    x[0] = from[place[0]], x[1] = from[place[1]];
#endif
}

INLINE void load_two(u32 (&x)[2], const u32 *from, const int (&place)[2]) {
#if R > 1
    const uint2 both = *reinterpret_cast<const uint2 *>(from + place[0]);
    x[0] = both.x, x[1] = both.y;
#else
    x[0] = from[place[0]], x[1] = from[place[1]];
#endif
}

INLINE void load_two(float (&x)[2], const u16 *from, const int (&place)[2]) {
#if R > 1
    const ushort2 both = *reinterpret_cast<const ushort2 *>(from + place[0]);
    x[0] = number(both.x), x[1] = number(both.y);
#else
    x[0] = number(from[place[0]]), x[1] = number(from[place[1]]);
#endif
}

// Four numbers of a row of 16 bits each, or zeros.
INLINE uint2 four(const u16 *row, bool held) {
    return held ? *reinterpret_cast<const uint2 *>(row) : make_uint2(0, 0);
}

// What a lane takes of a row of a head, or zeros.
INLINE void load_row(uint2 (&x)[STEPS], const u16 *row, int c, bool held) {
#if PAIRED
#pragma unroll
    for (int s = 0; s < STEPS; s += 2) {
        const uint4 both = held ? *reinterpret_cast<const uint4 *>(row + 16 * s + 8 * c)
                                : make_uint4(0, 0, 0, 0);
        x[s] = make_uint2(both.x, both.y), x[s + 1] = make_uint2(both.z, both.w);
    }
#else
    for (int s = 0; s < STEPS; ++s) x[s] = four(row + 16 * s + 4 * c, held);
#endif
}

INLINE void store_row(u16 *row, const uint2 (&x)[STEPS], int c) {
#if PAIRED
#pragma unroll
    for (int s = 0; s < STEPS; s += 2)
        *reinterpret_cast<uint4 *>(row + 16 * s + 8 * c) =
            make_uint4(x[s].x, x[s].y, x[s + 1].x, x[s + 1].y);
#else
    for (int s = 0; s < STEPS; ++s) *reinterpret_cast<uint2 *>(row + 16 * s + 4 * c) = x[s];
#endif
}

// Rows g and g + 8 as a matrix of the form A.
INLINE uint4 rows_as_a(uint2 upper, uint2 lower) {
    return make_uint4(upper.x, lower.x, upper.y, lower.y);
}

// A block of a history as queries or keys: where it stands.
struct Tile {
    int start, length, block, first_block_key;

    INLINE Tile(const int *table, int number) {
        const int *fields = table + number * 5;
        start = fields[0], length = fields[1], block = fields[2], first_block_key = fields[4];
    }
    INLINE int first() const { return block * SIZE; }
    INLINE int first_event() const { return start + block * SIZE; }   // among all that are packed
    INLINE bool empty() const { return block * SIZE >= length; }
};

// What pack_blocks wrote of one block and group: its keys, and STEPS * 32 behind them its values.
#define BLOCK_STRIDE (G * 2 * STEPS * 32)

INLINE uint4 *packed_block(uint4 *packed, int tile, int group, int lane) {
    return row_at(packed, tile, BLOCK_STRIDE) + group * (2 * STEPS * 32) + lane;
}

INLINE const uint4 *packed_block(const uint4 *packed, int tile, int group, int lane) {
    return row_at(packed, tile, BLOCK_STRIDE) + group * (2 * STEPS * 32) + lane;
}

INLINE void load_rows(
    uint4 (&x)[STEPS], const u16 *upper, const u16 *lower, int c, bool held, bool also
) {
    uint2 rows[2][STEPS];
    load_row(rows[0], upper, c, held), load_row(rows[1], lower, c, also);
    for (int s = 0; s < STEPS; ++s) x[s] = rows_as_a(rows[0][s], rows[1][s]);
}

INLINE void load_matrix(uint4 (&x)[STEPS], const uint4 *place) {
    for (int s = 0; s < STEPS; ++s) x[s] = place[s * 32];
}

INLINE int this_lane() { return threadIdx.x & 31; }
// Taken from one lane, it is known to the compiler to be the same in all: so is what follows from it.
INLINE int warp_of_block() { return TOGETHER > 1 ? from_lane((int)threadIdx.x / 32, 0) : 0; }
INLINE int this_warp() { return blockIdx.x * TOGETHER + warp_of_block(); }

// What a warp works on, where each has a tile and a group of heads. Those that share a first-level
// cache have the same group and tiles side by side: what one fetches, another may want, too. There
// are as many tiles as TOGETHER divides.
INLINE int this_group() { return blockIdx.x % G; }
INLINE int this_tile() { return blockIdx.x / G * TOGETHER + warp_of_block(); }
