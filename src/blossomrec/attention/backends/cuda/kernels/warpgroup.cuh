// Products of Hopper's warpgroups (wgmma.m64n64k16): four warps side by side multiply sixteen rows
// each by the same sixty-four keys, which tensor cores read from shared memory. A and C of a warp
// are as in mma.m16n8k16, C in eight parts of eight keys. Products run on their own: from
// begin_products to wait_for_products neither their factors nor their sums may be touched.
#define WARPGROUP 4   // warps
#define KEYS 64       // rows of a head: `bytes_to` places them as tensor cores expect them
#define EIGHTS (KEYS / 8)

#ifndef EMULATED
#define FOUR_SUMS(c) "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
#define ALL_SUMS(c) FOUR_SUMS(c[0]), FOUR_SUMS(c[1]), FOUR_SUMS(c[2]), FOUR_SUMS(c[3]), \
    FOUR_SUMS(c[4]), FOUR_SUMS(c[5]), FOUR_SUMS(c[6]), FOUR_SUMS(c[7])

// Memory whose size is given at launch: SHARED bytes.
#define SHARED_MEMORY(Type, name) extern __shared__ Type all_memory[]; Type &name = all_memory[0]

// Barriers by their number, for `threads` that arrive or wait: in all, those that wait among them.
INLINE void arrive_at(int barrier, int threads) {
    asm volatile("barrier.cta.arrive %0, %1;" :: "r"(barrier), "r"(threads) : "memory");
}
INLINE void wait_at(int barrier, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" :: "r"(barrier), "r"(threads) : "memory");
}

// Shows to tensor cores what this thread has written to shared memory, copies that it has waited for
// among that.
INLINE void show_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

INLINE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Begins to multiply by sixteen numbers of the keys, those from `step` on in multiples of sixteen;
// without `adds`, sums begin at zero. `keys` is a multiple of eight rows.
INLINE void multiply_keys(
    float (&sums)[EIGHTS][4], const uint4 &a, Shared keys, int step, bool adds
) {
    // Rows of 128, 64 or 32 bytes; eight of them are what is repeated. A step stays inside a row,
    // whose pieces the tensor cores find by their whole address.
    const u32 layout = ROW_BYTES == 128 ? 1 : ROW_BYTES == 64 ? 2 : 3;
    const u32 high = layout << 30 | 8 * ROW_BYTES >> 4;
    const u32 low = ((keys & 0x3ffff) >> 4 | 1 << 16) + 2 * step;
    asm volatile("{ .reg .pred adds; .reg .b64 keys; setp.ne.b32 adds, %38, 0;\n"
        "mov.b64 keys, {%36, %37};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, keys, adds, 1, 1, 0; }"
        : ALL_SUMS(sums)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high), "r"((int)adds)
        : "memory");
}

INLINE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

INLINE void wait_for_products(float (&sums)[EIGHTS][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" : ALL_SUMS(sums) :: "memory");
}
#endif

// Where the warpgroups of a block of threads, one or two, wait for each other. A warpgroup that has
// arrived goes on; it waits at its next step, until its own warps are there and the other warpgroup
// has arrived. Barriers take turns, since one may arrive again before the other has waited.
struct Meeting {
    static constexpr int groups = TOGETHER / WARPGROUP, threads = 32 * TOGETHER;
    int own, turn = 0;   // number of the warpgroup

    INLINE explicit Meeting(int group) : own(group) {}

    INLINE void arrive() {
        if (groups > 1) arrive_at(1 + 2 * own + turn, threads);
    }
    INLINE void wait() {
        wait_at(1 + 2 * (groups - 1 - own) + turn, threads);
        turn ^= 1;
    }
};
