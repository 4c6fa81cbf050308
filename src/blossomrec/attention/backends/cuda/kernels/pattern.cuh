// The short-term path: which distances it reaches over. Powers have numbers: those of two their
// exponents. Powers of another base are DISTANCES, given when compiled: all that a history may
// have, rounded and rising, and one beyond any history.

#ifdef DISTANCES
constexpr __constant__ int distances[] = {DISTANCES};
#define KNOWN ((int)(sizeof(distances) / sizeof(int)))
#define ALIGNED 0        // whether powers beyond the near blocks are multiples of SIZE
#define POWER(number) distances[number]

// Whether a distance is one of the first `count` powers.
constexpr INLINE bool is_power(int distance, int count) {
    bool found = false;
    for (int number = 0; number < count; ++number) found |= distance == distances[number];
    return found;
}
#define IS_POWER(size, count) is_power(size, count)
#else
#define KNOWN 31
#define ALIGNED 1
#define POWER(exponent) (1 << (exponent))
#define IS_POWER(size, count) (((size) & ((size) - 1)) == 0)
#endif

// Whether the short-term path sees a key of a near block at this distance.
constexpr INLINE bool visible(int distance) {
    const int size = distance < 0 ? (CAUSAL ? -1 : -distance) : distance;
    return size >= 0 && (size < WINDOW || IS_POWER(size, FIRST_FAR));
}

constexpr INLINE int power_up_to(int limit) {
    int power = 1;
    while (2 * power <= limit) power *= 2;
    return power;
}

// Whether the short-term path, too, sees a key of a chosen block; causal events choose earlier ones.
INLINE bool seen_twice(int distance) {
    const int size = CAUSAL || distance >= 0 ? distance : -distance;
#ifdef DISTANCES
    return (size < WINDOW) | is_power(size, KNOWN);
#else
    // Without its lowest bit, a distance has bits from some power of two on if it reaches that and
    // is no power of two itself.
    constexpr int power = power_up_to(WINDOW);
    return ((size & (size - 1) & -power) == 0) | (power < WINDOW && size < WINDOW);
#endif
}

#if CAUSAL
constexpr INLINE unsigned long long visible_distances() {
    unsigned long long bits = 0;
    for (int distance = 0; distance < 64; ++distance)
        if (visible(distance)) bits |= 1ull << distance;
    return bits;
}
#endif

// The pattern between near keys and the queries of a tile, as one lane of C sees it: rows g and
// g + 8 of a block of keys, columns 2c and 2c + 1 of a unit.
struct NearPattern {
    int distance[2];            // from row g of the tile to the columns of its first unit
#if CAUSAL
    unsigned long long bits[2]; // bit t: whether the distance t - 8 more than that is visible

    INLINE NearPattern(int g, int c) {
        for (int i = 0; i < 2; ++i) {
            distance[i] = (2 * c + i) / R - g;
            bits[i] = visible_distances() << (8 - distance[i]);
        }
    }
    // The same of the unit that begins `first` events later.
    INLINE NearPattern later(int first) const {
        NearPattern pattern = *this;
        for (int i = 0; i < 2; ++i) {
            pattern.distance[i] += first;
            pattern.bits[i] = in_registers(bits[i] >> first);
        }
        return pattern;
    }
    // Row g + 8 * half of the block that is `back` before the tile, seen `first` events later.
    INLINE bool sees(int i, int first, int back, int half) const {
        return bits[i] >> first >> (16 * back - 8 * half + 8) & 1;
    }
#else
    INLINE NearPattern(int g, int c) {
        for (int i = 0; i < 2; ++i) distance[i] = (2 * c + i) / R - g;
    }
    INLINE NearPattern later(int first) const {
        NearPattern pattern = *this;
        for (int i = 0; i < 2; ++i) pattern.distance[i] += first;
        return pattern;
    }
    INLINE bool sees(int i, int first, int back, int half) const {
        return visible(distance[i] + first + 16 * back - 8 * half);
    }
#endif
    // The long-term path inside the own block.
    INLINE bool sees_own(int i, int first, int half) const {
        return !CAUSAL || distance[i] + first >= 8 * half;
    }
};
