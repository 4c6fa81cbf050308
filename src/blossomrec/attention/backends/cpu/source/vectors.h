// Vectors as wide as the machine's registers, through the extension that GCC and Clang share.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * LANES)));  // lanes 0 or -1, or any integers
// The same at any address.
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t LooseMask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr float HIDDEN = -1e30f;  // score of a key that is not seen

static inline Vector load(const float *from) { return *(const Loose *)from; }
static inline Mask load(const int32_t *from) { return *(const LooseMask *)from; }
static inline void store(float *to, Vector x) { *(Loose *)to = x; }

static inline Vector every(float x) { return x - Vector{}; }
static inline Mask every(int32_t x) { return x - Mask{}; }

static inline Mask lane_numbers() {
    Mask number;
    for (int lane = 0; lane < LANES; lane++) number[lane] = lane;
    return number;
}

static inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// Whether a lane is not 0.
static inline bool any(Mask x) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x);
#elif defined(__AVX__)
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
    int64_t words[LANES / 2];
    memcpy(words, &x, sizeof words);
    int64_t joint = 0;
    for (int word = 0; word < LANES / 2; word++) joint |= words[word];
    return joint != 0;
#endif
}

// Lane i of the result is lane from(i) of a, or of b behind it.
template <class From, int... LANE>
static inline Vector pick(Vector a, Vector b, From, std::integer_sequence<int, LANE...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, From()(LANE)...);
#else
    return __builtin_shuffle(a, b, Mask{From()(LANE)...});
#endif
}

template <int APART>
struct Across {
    constexpr int operator()(int lane) const { return lane ^ APART; }
};

// All lanes combined, in each of them.
template <int APART = LANES / 2, class Combine>
static inline Vector fold(Vector x, Combine combine) {
    x = combine(x, pick(x, x, Across<APART>(), std::make_integer_sequence<int, LANES>()));
    if constexpr (APART > 1) return fold<APART / 2>(x, combine);
    return x;
}

static inline float total(Vector x) {
    return fold(x, [](Vector a, Vector b) { return a + b; })[0];
}

static inline float largest(Vector x) { return fold(x, larger)[0]; }

template <class From, int APART>
struct Behind {
    constexpr int operator()(int lane) const { return From()(lane) + APART; }
};

// What `From` takes of a and b, and what stands so far behind it, added.
template <class From, int APART>
static inline Vector add_apart(Vector a, Vector b) {
    const auto lanes = std::make_integer_sequence<int, LANES>();
    return pick(a, b, From(), lanes) + pick(a, b, Behind<From, APART>(), lanes);
}

// Every four lanes: the first two numbers of a, each followed by that of b.
struct Numbers {
    constexpr int operator()(int lane) const {
        return lane / 4 * 4 + lane % 4 / 2 + lane % 2 * LANES;
    }
};
// Every four lanes: the first two numbers of a, then those of b.
struct Pairs {
    constexpr int operator()(int lane) const {
        return lane / 4 * 4 + lane % 2 + lane % 4 / 2 * LANES;
    }
};
// The first half of a, then that of b.
struct Halves {
    constexpr int operator()(int lane) const {
        return lane % (LANES / 2) + lane / (LANES / 2) * LANES;
    }
};
// Every other four lanes of a, then those of b.
struct Fours {
    constexpr int operator()(int lane) const {
        return lane % 8 / 4 * 8 + lane % 4 + lane / 8 * LANES;
    }
};

// Lane i of the result is the total of x[i], of LANES vectors. Across four lanes little is moved, for
// that takes longest.
static inline Vector totals(const Vector *x) {
    Vector sums[LANES / 4];
#pragma GCC unroll 4
    for (int i = 0; i < LANES / 4; i++) {
        const Vector *four = x + 4 * i;
        const Vector first = add_apart<Numbers, 2>(four[0], four[1]);
        sums[i] = add_apart<Pairs, 2>(first, add_apart<Numbers, 2>(four[2], four[3]));
    }
    if constexpr (LANES == 4) return sums[0];
    if constexpr (LANES == 8) return add_apart<Halves, LANES / 2>(sums[0], sums[1]);
    if constexpr (LANES == 16) {
        const Vector first = add_apart<Halves, LANES / 2>(sums[0], sums[1]);
        return add_apart<Fours, 4>(first, add_apart<Halves, LANES / 2>(sums[2], sums[3]));
    }
}

// Two rows of pieces of W lanes: the second pieces of the first row and the first of the second
// change places.
template <int W>
struct FirstRow {
    constexpr int operator()(int lane) const { return lane & W ? (lane ^ W) + LANES : lane; }
};
template <int W>
struct SecondRow {
    constexpr int operator()(int lane) const { return lane & W ? lane + LANES : lane ^ W; }
};

// LANES rows to as many columns.
template <int W = LANES / 2>
static inline void transpose(Vector *x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 16
    for (int row = 0; row < LANES; row++) {
        if (row & W) continue;
        const Vector first = x[row], second = x[row + W];
        x[row] = pick(first, second, FirstRow<W>(), lanes);
        x[row + W] = pick(first, second, SecondRow<W>(), lanes);
    }
    if constexpr (W > 1) transpose<W / 2>(x);
}

// to [count, LANES], rows `step` apart = columns of x [rows, count], of which the rows are `stride`
// apart and at most LANES; zeros behind them.
static inline void copy_across(
    const float *x, int64_t stride, int rows, int count, float *to, int64_t step
) {
    int first = 0;
    for (; first + LANES <= count; first += LANES) {
        Vector square[LANES];
#pragma GCC unroll 16
        for (int row = 0; row < LANES; row++)
            square[row] = row < rows ? load(x + row * stride + first) : Vector{};
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) store(to + (first + i) * step, square[i]);
    }
    for (; first < count; first++)
        for (int row = 0; row < LANES; row++)
            to[first * step + row] = row < rows ? x[row * stride + first] : 0;
}

// 2 ** x, relative error 2e-7; 0 below 2 ** -126. For x up to 127.
static inline Vector exp2(Vector x) {
    const Vector nearest = every(12582912.f);  // 1.5 * 2 ** 23: adding it rounds to an integer
    const Vector small = every(-126.f);
    const Mask vanishes = x < small;
    x = vanishes ? small : x;
    const Vector shifted = x + nearest;
    const Vector f = x - (shifted - nearest);  // -0.5 to 0.5
    // Taylor series of exp(f * ln 2).
    Vector y = f * 1.5252734e-5f + 1.5403530e-4f;
    y = y * f + 1.3333558e-3f;
    y = y * f + 9.6181291e-3f;
    y = y * f + 5.5504109e-2f;
    y = y * f + 2.4022651e-1f;
    y = y * f + 6.9314718e-1f;
    y = y * f + 1.f;
    const Mask power = ((Mask)shifted - (Mask)nearest) << 23;
    return vanishes ? Vector{} : (Vector)((Mask)y + power);
}

// log2(x) for positive normal x, absolute error 1e-7 times the larger of 1 and the result.
static inline Vector log2(Vector x) {
    const Mask bits = (Mask)x;
    const Mask low = every((int32_t)0x3f3504f3);  // sqrt(1/2): mantissas from there to sqrt(2)
    const Mask exponent = (bits - low) >> 23;
    const Vector m = (Vector)(bits - (exponent << 23));
    const Vector t = (m - 1.f) / (m + 1.f), t2 = t * t;
    // 2 / ln 2 * artanh(t)
    Vector y = t2 * 0.32059889f + 0.41219858f;
    y = y * t2 + 0.57707802f;
    y = y * t2 + 0.96179669f;
    y = y * t2 + 2.8853901f;
    return y * t + __builtin_convertvector(exponent, Vector);
}
