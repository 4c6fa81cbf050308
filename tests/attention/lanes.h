// Runs a CUDA kernel on a CPU: the threads of a block are coroutines, and the 32 lanes of a warp meet
// at every operation of the whole warp. Slow, exact in what it checks: indices, masks, sums.
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED 1
#define INLINE inline
#define __device__
#define __constant__
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local

// Vectors count how often they are read or written where a GPU would refuse it.
static thread_local int misaligned;
static inline void check_alignment(const void *place, size_t bytes) {
    if ((size_t)place % bytes) ++misaligned;
}
template <typename T, int Bytes>
struct alignas(Bytes) Two {
    T x, y;
    Two() = default;
    Two(T x, T y) : x(x), y(y) {}
    Two(const Two &other) { *this = other; }
    Two &operator=(const Two &other) {
        check_alignment(this, Bytes), check_alignment(&other, Bytes);
        x = other.x, y = other.y;
        return *this;
    }
};
template <typename T>
struct alignas(16) Four {
    T x, y, z, w;
    Four() = default;
    Four(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
    Four(const Four &other) { *this = other; }
    Four &operator=(const Four &other) {
        check_alignment(this, 16), check_alignment(&other, 16);
        x = other.x, y = other.y, z = other.z, w = other.w;
        return *this;
    }
};
typedef Two<unsigned short, 4> ushort2;
typedef Two<unsigned, 8> uint2;
typedef Two<float, 8> float2;
typedef Four<unsigned> uint4;
typedef Four<float> float4;
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float __int_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_int(float x) { unsigned y; memcpy(&y, &x, 4); return y; }

struct Index { int x; };
static thread_local Index blockIdx, threadIdx;

namespace lanes {
constexpr int THREADS = 32 * TOGETHER;
struct Given { unsigned words[6]; float numbers[4]; };
static thread_local Given given[TOGETHER][2][32];
static thread_local int turn[THREADS], arrived[TOGETHER][2];
static thread_local int arrivals[16], meetings[16];   // of each barrier
static thread_local ucontext_t starts[THREADS];
// Where each goes on. Jumps leave the mask of signals alone, for which contexts ask the kernel.
static thread_local jmp_buf places[THREADS], scheduler;
static thread_local bool started[THREADS], done[THREADS];
static thread_local int current, warp, thread;   // lane and warp of the thread that runs
static thread_local bool waits;                   // whether it is for other warps

static void pause() {
    if (!_setjmp(places[thread])) _longjmp(scheduler, 1);
}
static void go_on() {
    if (_setjmp(scheduler)) return;
    if (started[thread]) _longjmp(places[thread], 1);
    started[thread] = true;
    setcontext(&starts[thread]);
}

// Waits until every lane has given something, and returns all that was given.
static const Given *meet(const Given &mine) {
    const int side = turn[thread] ^= 1;
    given[warp][side][current] = mine;
    arrived[warp][side]++;
    while (arrived[warp][side] % 32 != 0) pause();
    return given[warp][side];
}

}

static inline float number_of_f16(unsigned short x) {
    const int sign = x >> 15, exponent = x >> 10 & 31, fraction = x & 1023;
    float y = exponent == 0 ? std::ldexp((float)fraction, -24)
        : exponent == 31 ? (fraction ? NAN : INFINITY)
        : std::ldexp((float)(fraction + 1024), exponent - 25);
    return sign ? -y : y;
}

static inline float number_of(unsigned short x) {
    return BF16 ? __int_as_float((unsigned)x << 16) : number_of_f16(x);
}

static inline unsigned short rounded(float x) {
#if BF16
    unsigned bits = __float_as_int(x);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (size != size) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-05f) return sign | (unsigned short)std::nearbyint(std::ldexp(size, 24));
    int exponent;
    const float fraction = std::frexp(size, &exponent);   // in [0.5, 1)
    const int whole = (int)std::nearbyint(std::ldexp(fraction, 11));
    return sign | (unsigned short)(((exponent + 14) << 10) + whole - 1024);
#endif
}

static inline unsigned pair(float low, float high) {
    return rounded(low) | (unsigned)rounded(high) << 16;
}
static inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; }
static inline float quotient(float x, float y) { return flushed(flushed(x) / flushed(y)); }
static inline float exp_2(float x) { return std::exp2(x); }
static inline float log_2(float x) { return std::log2(x); }

static inline float from_lane(float x, int lane) {
    return lanes::meet({{}, {x}})[lane & 31].numbers[0];
}
static inline int from_lane(int x, int lane) {
    return (int)lanes::meet({{(unsigned)x}, {}})[lane & 31].words[0];
}
static inline float across(float x, int mask) { return from_lane(x, lanes::current ^ mask); }
static inline int across(int x, int mask) { return from_lane(x, lanes::current ^ mask); }
static inline unsigned across(unsigned x, int mask) { return across((int)x, mask); }
static inline unsigned lanes_with(bool x) {
    const lanes::Given *all = lanes::meet({{x}, {}});
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= all[lane].words[0] << lane;
    return bits;
}
static inline int anew(int x) { return x; }
static inline bool any_lane(bool x) { return lanes_with(x); }
static inline int lowest(int x) {
    const lanes::Given *all = lanes::meet({{(unsigned)x}, {}});
    for (int lane = 0; lane < 32; ++lane) x = min(x, (int)all[lane].words[0]);
    return x;
}
static inline unsigned lanes_like(int x) {
    const lanes::Given *all = lanes::meet({{(unsigned)x}, {}});
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= (unsigned)((int)all[lane].words[0] == x) << lane;
    return bits;
}
static inline int number_of_bits(unsigned x) { return __builtin_popcount(x); }
static inline void wait_for_lanes() { lanes::meet({{}, {}}); }
static inline int add_to(int *sum, int x) { return std::exchange(*sum, *sum + x); }
static inline long long wide_product(int x, int y) { return (long long)x * y; }
template <typename T>
static inline T in_registers(T x) { return x; }
static inline float half_of(unsigned word, int which) {
    return number_of((unsigned short)(which ? word >> 16 : word & 0xffff));
}

static inline unsigned turned(unsigned x) {
    const int lane = lanes::current, g = lane / 4, c = lane % 4;
    const lanes::Given *all = lanes::meet({{x}, {}});
    unsigned parts[2];
    for (int i = 0; i < 2; ++i) {
        const unsigned word = all[(2 * c + i) * 4 + g / 2].words[0];
        parts[i] = g % 2 ? word >> 16 : word & 0xffff;
    }
    return parts[0] | parts[1] << 16;
}

static inline void product(float (&c)[4], const uint4 &a, unsigned b0, unsigned b1) {
    const lanes::Given *all = lanes::meet({{a.x, a.y, a.z, a.w, b0, b1}, {}});
    const int lane = lanes::current, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const lanes::Given &left = all[row % 8 * 4 + k % 8 / 2];
            const lanes::Given &right = all[column * 4 + k % 8 / 2];
            sum += (double)half_of(left.words[(k / 8) * 2 + row / 8], k % 2)
                * half_of(right.words[4 + k / 8], k % 2);
        }
        c[i] = (float)sum;
    }
}

// Rows of four matrices 8 x 8 by their addresses, those of the first matrix from lanes 0 to 7.
typedef size_t Shared;
static inline Shared shared_address(const void *x) { return (Shared)x; }
template <int Offset>
static inline uint4 matrices(Shared row) {
    const size_t address = row + Offset;
    check_alignment((void *)address, 16);
    const lanes::Given *all = lanes::meet({{(unsigned)address, (unsigned)(address >> 32)}, {}});
    const int g = lanes::current / 4, c = lanes::current % 4;
    unsigned words[4];
    for (int n = 0; n < 4; ++n) {
        const unsigned *given = all[8 * n + g].words;
        words[n] = ((const unsigned *)(given[0] | (size_t)given[1] << 32))[c];
    }
    return {words[0], words[1], words[2], words[3]};
}
template <int Offset>
static inline uint4 turned_matrices(Shared row) {
    const uint4 x = matrices<Offset>(row);
    return {turned(x.x), turned(x.y), turned(x.z), turned(x.w)};
}

// Copies of each lane, group by group: none is made before it has to be.
namespace lanes {
struct Copy { void *to; const void *from; int bytes; bool held; };
static thread_local std::vector<std::vector<Copy>> copies[THREADS];
static thread_local std::vector<Copy> begun[THREADS];
}
template <int Offset>
static inline void copy_16(Shared to, const void *from, bool held) {
    check_alignment((void *)(to + Offset), 16), check_alignment(from, 16);
    lanes::begun[lanes::thread].push_back({(void *)(to + Offset), from, 16, held});
}
static inline void commit_copies() {
    lanes::copies[lanes::thread].push_back(std::move(lanes::begun[lanes::thread]));
    lanes::begun[lanes::thread].clear();
}
template <int Later>
static inline void wait_for_copies() {
    auto &groups = lanes::copies[lanes::thread];
    for (; groups.size() > Later; groups.erase(groups.begin()))
        for (const lanes::Copy &each : groups[0])
            if (each.held) memcpy(each.to, each.from, each.bytes);
            else memset(each.to, 0, each.bytes);
    lanes::meet({{}, {}});
}

// Eight bytes of a lane in shared memory.
static inline uint2 two_words(Shared at) { return *(const uint2 *)at; }
template <int Bytes>
static inline void put_if_above(Shared &to, float x, float bound, int word) {
    if (!(x > bound)) return;
    *(uint2 *)to = make_uint2(__float_as_int(x), word);
    to += Bytes;
}

// Products of a warpgroup, by the rows that each warp has of them. Pieces of sixteen bytes lie where
// tensor cores find them: by the row's number among eight, from the lowest bits of the address on.
#define SHARED_MEMORY(Type, name) static thread_local Type name
static inline void arrive_at(int barrier, int threads) {
    if (++lanes::arrivals[barrier] == threads) lanes::arrivals[barrier] = 0, ++lanes::meetings[barrier];
}
static inline void wait_at(int barrier, int threads) {
    const int before = lanes::meetings[barrier];
    arrive_at(barrier, threads);
    while (lanes::meetings[barrier] == before) lanes::waits = true, lanes::pause();
}
static inline void show_products() {}
static inline void begin_products() {}
template <size_t Eights>
static inline void multiply_keys(
    float (&sums)[Eights][4], const uint4 &a, Shared keys, int step, bool adds
) {
    const lanes::Given *all = lanes::meet({{a.x, a.y, a.z, a.w}, {}});
    const int g = lanes::current / 4, c = lanes::current % 4;
    check_alignment((void *)keys, 16 * D);
    for (int n = 0; n < Eights; ++n)
        for (int i = 0; i < 4; ++i) {
            const int row = g + i / 2 * 8, key = 8 * n + 2 * c + i % 2;
            double sum = adds ? sums[n][i] : 0.0;
            for (int k = 0; k < 16; ++k) {
                const size_t place = keys + key / 8 * (16 * D) + key % 8 * (2 * D) + 32 * step + 2 * k;
                const size_t found = place ^ (place >> 7 & (D / 8 - 1)) << 4;
                sum += (double)half_of(all[row % 8 * 4 + k % 8 / 2].words[k / 8 * 2 + row / 8], k % 2)
                    * number_of(*(const unsigned short *)found);
            }
            sums[n][i] = (float)sum;
        }
}
static inline void end_products() {}
template <size_t Eights>
static inline void wait_for_products(float (&)[Eights][4]) { lanes::meet({{}, {}}); }

typedef void (*Body)(void **);
static thread_local Body body;
static thread_local void **arguments;

static void run_lane() {
    body(arguments);
    lanes::done[lanes::thread] = true;
    lanes::pause();
}

// Runs the blocks of a grid one after another, each of TOGETHER warps. Returns how many accesses were
// not aligned.
static int launch(Body kernel, void **given, int blocks) {
    using namespace lanes;
    static thread_local std::vector<std::vector<char>> stacks(THREADS, std::vector<char>(1 << 17));
    body = kernel, arguments = given, misaligned = 0;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        memset(turn, 0, sizeof turn), memset(arrived, 0, sizeof arrived);
        memset(arrivals, 0, sizeof arrivals);
        for (int i = 0; i < THREADS; ++i) {
            started[i] = done[i] = false;
            copies[i].clear(), begun[i].clear();
            getcontext(&starts[i]);
            starts[i].uc_stack.ss_sp = stacks[i].data();
            starts[i].uc_stack.ss_size = stacks[i].size();
            starts[i].uc_link = nullptr;
            makecontext(&starts[i], run_lane, 0);
        }
        // A warp goes on until it waits for others: stacks of few threads stay in the cache.
        for (int left = THREADS; left;) {
            left = 0;
            for (warp = 0; warp < TOGETHER; ++warp)
                for (int more = 32; more;) {
                    more = 0, waits = false;
                    for (current = 0; current < 32; ++current) {
                        thread = threadIdx.x = 32 * warp + current;
                        if (done[thread]) continue;
                        ++more;
                        go_on();
                    }
                    if (!waits) continue;
                    left += more;
                    break;
                }
        }
    }
    return misaligned;
}
