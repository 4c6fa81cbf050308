// Item vectors in 8 bits, and by their products those items that may be among a query's k best.
#include <algorithm>
#include <cfloat>
#include <cmath>

// What the functions return, and the threads that they start.
enum Status : int { FINE, NO_MEMORY, UNFIT };
#include "threads.h"

#if defined(__x86_64__) && defined(__AVX2__)
#include <immintrin.h>
#endif

// Items side by side; the codes of a panel are [pairs][PANEL][2], pairs of neighbouring numbers.
constexpr int64_t PANEL = 16;
constexpr int64_t LARGEST_CODE = 127;
// Bytes of codes that all queries meet before the next ones: they stay in the nearest cache.
constexpr int64_t CHUNK_BYTES = 16 << 10;
// Items that a thread is worth its start for, once for each query.
constexpr int64_t FEW_ITEMS = 16 << 10;
// Queries whose candidates a thread is worth its start for.
constexpr int64_t FEW_QUERIES = 16;
// Below it a row has no code, above it no product is trusted.
constexpr double SMALLEST = 1e-30, LARGEST = 1e30;
// A query whose norm is less, and the least error of an item: no number below is denormal.
constexpr double SMALLEST_NORM = 1e-15, LEAST_ERROR = 1e-18;
// Largest product of the norms of a query and an item.
constexpr double LARGEST_PRODUCT = 1e36;
// How often a range of 32 bits is halved: what is left is less than a thousandth of a number.
constexpr int HALVINGS = 20;

struct Table {
    const float *vectors;  // [items, size]
    int8_t *codes;  // [panels][pairs][PANEL][2], zeros
    float *scales, *errors;  // [items]
    double *largest;  // [1], of the norms of the vectors
    int64_t items, size, threads;
};

struct Search {
    const int8_t *codes;
    const float *scales, *errors;
    const float *queries;  // [count, size]
    const float *const *offsets;  // [count] of null or [items]; -infinity leaves an item out
    const float *const *peaks;  // [count] of null or [panels], the largest offsets of panels
    const int64_t *seen_starts, *seen;  // [count + 1]; item rows, rising for each query
    const double *largest;
    int32_t *found;  // [count, room]
    int64_t *counts;  // [count]; -1 where they are more, or nothing is known
    int64_t items, size, count, k, room, threads;
};

// So large that no sum of products leaves 32 bits.
static int32_t largest_query_code(int64_t size) {
    return (int32_t)std::min<int64_t>(INT16_MAX, INT32_MAX / (LARGEST_CODE * (size + 1)));
}

// What rounding a query takes from a product, as a share of both norms.
static double query_error(int64_t size) {
    return 1.01 * sqrt((double)size) / (2.0 * largest_query_code(size));
}

// What sums in float32 lose, in any order, those of the float32 score included.
static double sum_error(int64_t size) {
    return ldexp((double)size, -22) + ldexp(1, -19);
}

// Puts one item's codes in their places; whether its numbers are finite and of a fair size.
static bool quantise(const Table &table, int64_t item) {
    const int64_t size = table.size, pairs = (size + 1) / 2;
    const float *vector = table.vectors + item * size;
    int8_t *to = table.codes + item / PANEL * pairs * PANEL * 2 + item % PANEL * 2;
    float largest = 0;
    bool fair = true;
    for (int64_t d = 0; d < size; d++) {
        const float size_of = fabsf(vector[d]);
        // Not true of what is not a number either.
        fair &= size_of < (float)LARGEST;
        largest = size_of > largest ? size_of : largest;
    }
    if (!fair) return false;
    const bool coded = largest >= (float)SMALLEST;
    const float scale = coded ? largest / LARGEST_CODE : 0;
    const float inverse = coded ? LARGEST_CODE / largest : 0;
    double lost = 0, norm = 0;
    for (int64_t d = 0; d < size; d++) {
        const double exact = vector[d];
        const int64_t code = lrintf(vector[d] * inverse);
        const int64_t kept = std::max(-LARGEST_CODE, std::min(LARGEST_CODE, code));
        const double rest = exact - (double)scale * kept;
        lost += rest * rest;
        norm += exact * exact;
        to[d / 2 * PANEL * 2 + d % 2] = (int8_t)kept;
    }
    lost = sqrt(lost), norm = sqrt(norm);
    const double error = lost + (query_error(size) + sum_error(size)) * (norm + lost);
    table.scales[item] = scale;
    table.errors[item] = (float)(std::max(error, LEAST_ERROR) * (1 + 1e-6));
    table.largest[0] = norm;
    return true;
}

extern "C" int blossom_quantise(Table *given) {
    const Table &table = *given;
    const int64_t panels = table.items / PANEL, each = 1024;
    const int64_t pieces = (panels + each - 1) / each;
    Buffer<double> norms(pieces);
    if (!norms.data) return NO_MEMORY;
    std::atomic<bool> fair{true};
    const Status failed = in_parallel(pieces, table.threads, 1, 0, [&](int64_t piece, Vector *) {
        double largest = 0, norm;
        Table own = table;
        own.largest = &norm;
        const int64_t stop = std::min(table.items, (piece + 1) * each * PANEL);
        for (int64_t item = piece * each * PANEL; item < stop; item++) {
            if (!quantise(own, item)) {
                fair = false;
                return;
            }
            largest = std::max(largest, norm);
        }
        norms.data[piece] = largest;
    });
    if (failed) return failed;
    if (!fair) return UNFIT;
    table.largest[0] = *std::max_element(norms.data, norms.data + pieces);
    return FINE;
}

// Sums of products of a query with the items of a panel.
constexpr int PARTS = PANEL / LANES;
struct Sums {
    Mask part[PARTS];
};

// Sums of Q queries, whose codes are pairs, as words, with a panel of items.
#if defined(__AVX512BW__)
constexpr int TOGETHER = 8;
template <int Q>
static inline void products(
    const int8_t *codes, const int32_t *queries, int64_t pairs, Sums *sums
) {
    __m512i sum[Q] = {};
    for (int64_t pair = 0; pair < pairs; pair++) {
        const __m512i items =
            _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)codes + pair));
        for (int q = 0; q < Q; q++) {
            const __m512i query = _mm512_set1_epi32(queries[q * pairs + pair]);
#if defined(__AVX512VNNI__)
            sum[q] = _mm512_dpwssd_epi32(sum[q], items, query);
#else
            sum[q] = _mm512_add_epi32(sum[q], _mm512_madd_epi16(items, query));
#endif
        }
    }
    for (int q = 0; q < Q; q++) sums[q].part[0] = (Mask)sum[q];
}
#elif defined(__AVX2__)
constexpr int TOGETHER = 4;
static inline __m256i added(__m256i sum, __m256i items, __m256i query) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sum, items, query);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(items, query));
#endif
}
template <int Q>
static inline void products(
    const int8_t *codes, const int32_t *queries, int64_t pairs, Sums *sums
) {
    __m256i first[Q] = {}, second[Q] = {};
    for (int64_t pair = 0; pair < pairs; pair++) {
        const __m128i *from = (const __m128i *)codes + 2 * pair;
        const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128(from));
        const __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128(from + 1));
        for (int q = 0; q < Q; q++) {
            const __m256i query = _mm256_set1_epi32(queries[q * pairs + pair]);
            first[q] = added(first[q], low, query);
            second[q] = added(second[q], high, query);
            asm("" : "+x"(first[q]), "+x"(second[q]));
        }
    }
    for (int q = 0; q < Q; q++) {
        _mm256_store_si256((__m256i *)&sums[q], first[q]);
        _mm256_store_si256((__m256i *)&sums[q] + 1, second[q]);
    }
}
#else
constexpr int TOGETHER = 4;
template <int Q>
static inline void products(
    const int8_t *codes, const int32_t *queries, int64_t pairs, Sums *sums
) {
    int32_t sum[Q][PANEL] = {};
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int8_t *items = codes + pair * PANEL * 2;
        for (int q = 0; q < Q; q++) {
            int16_t query[2];
            memcpy(query, queries + q * pairs + pair, sizeof query);
            for (int64_t lane = 0; lane < PANEL; lane++)
                sum[q][lane] += (int32_t)items[2 * lane] * query[0]
                    + (int32_t)items[2 * lane + 1] * query[1];
        }
    }
    memcpy(sums, sum, sizeof sum);
}
#endif

// Queries as codes, and what their bounds are made of.
struct Queries {
    struct One {
        float unit, norm, share;  // share: the norm in units
        bool fair;
    };
    const int64_t pairs;
    Buffer<int16_t> codes;
    Buffer<One> each;

    explicit Queries(const Search &search)
        : pairs((search.size + 1) / 2), codes(search.count * 2 * pairs), each(search.count) {
        if (!codes.data || !each.data) return;
        for (int64_t query = 0; query < search.count; query++) fill(search, query);
    }

    const int32_t *words(int64_t query) const {
        return (const int32_t *)codes.data + query * pairs;
    }

    void fill(const Search &search, int64_t query) {
        const float *numbers = search.queries + query * search.size;
        int16_t *to = codes.data + query * 2 * pairs;
        memset(to, 0, 2 * pairs * sizeof *to);
        double norm = 0, largest = 0;
        bool finite = true;
        for (int64_t d = 0; d < search.size; d++) {
            const double one = numbers[d];
            finite &= std::isfinite(one);
            norm += one * one;
            largest = std::max(largest, fabs(one));
        }
        norm = sqrt(norm);
        One &own = each.data[query];
        own = {1, 0, 0, false};
        own.fair = finite && norm >= SMALLEST_NORM && norm * search.largest[0] <= LARGEST_PRODUCT;
        if (!own.fair) return;
        const int32_t most = largest_query_code(search.size);
        own.unit = (float)(largest / most);
        own.norm = (float)(norm * (1 + 1e-6));
        own.share = own.norm / own.unit;
        for (int64_t d = 0; d < search.size; d++) {
            const long code = lrint(numbers[d] / (double)own.unit);
            to[d] = (int16_t)std::max<long>(-most, std::min<long>(most, code));
        }
    }
};

// A float as an integer, in the same order; and back.
static inline int32_t key_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static inline float float_of(int32_t key) {
    const int32_t bits = key ^ ((key >> 31) & INT32_MAX);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// What a thread has met of a query that may be among the k best.
struct Candidates {
    float *upper;
    int32_t *lower;  // keys
    int32_t *items;
    int64_t count, limit;
    bool full;

    void put(float high, int32_t low, int32_t item) {
        upper[count] = high, lower[count] = low, items[count++] = item;
    }

    // Keeps those whose upper bound is at least so much.
    void keep(float least) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            upper[kept] = upper[i], lower[kept] = lower[i], items[kept] = items[i];
            kept += upper[i] >= least;
        }
        count = kept;
    }
};

// About the k-th largest lower bound of several lists, and no more than it, nor infinite; -FLT_MAX
// where they are fewer.
static float kth_lower(const Candidates *lists, int64_t number, int64_t stride, int64_t k) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    int64_t count = 0;
    for (int64_t list = 0; list < number; list++) {
        const Candidates &own = lists[list * stride];
        count += own.count;
        for (int64_t i = 0; i < own.count; i++) {
            low = std::min(low, own.lower[i]);
            high = std::max(high, own.lower[i]);
        }
    }
    if (count < k) return -FLT_MAX;
    for (int halving = 0; halving < HALVINGS; halving++) {
        const int32_t middle = (int32_t)(((int64_t)low + high) >> 1);
        int64_t reach = 0;
        for (int64_t list = 0; list < number; list++) {
            const Candidates &own = lists[list * stride];
            int32_t here = 0;
            for (int64_t i = 0; i < own.count; i++) here += own.lower[i] >= middle;
            reach += here;
        }
        (reach >= k ? low : high) = middle;
    }
    return std::min(float_of(low), FLT_MAX);
}

// What one thread finds of all queries.
struct Worker {
    const Search &search;
    const Queries &queries;
    std::atomic<float> *least;  // [count], that the k-th best score of a query is at least
    Candidates *mine;  // [count]

    void chunk(int64_t first, int64_t stop) {
        int64_t query = 0;
        for (; query + TOGETHER <= search.count; query += TOGETHER)
            panels<TOGETHER>(query, first, stop);
        for (; query < search.count; query++) panels<1>(query, first, stop);
    }

    template <int Q>
    void panels(int64_t query, int64_t first, int64_t stop) {
        float cuts[Q];
        for (int q = 0; q < Q; q++) cuts[q] = cut(query + q);
        const Queries::One *own = queries.each.data + query;
        for (int64_t panel = first; panel < stop; panel++) {
            Sums sums[Q];
            products<Q>(
                search.codes + panel * queries.pairs * PANEL * 2, queries.words(query),
                queries.pairs, sums);
            const float *scales = search.scales + panel * PANEL;
            const float *errors = search.errors + panel * PANEL;
            Mask reached[Q] = {};
            float own_cuts[Q];
            for (int q = 0; q < Q; q++) own_cuts[q] = cuts[q] - peak(query + q, panel);
            for (int part = 0; part < PARTS; part++) {
                const Vector scale = load(scales + part * LANES);
                const Vector error = load(errors + part * LANES);
                for (int q = 0; q < Q; q++) {
                    const Vector sum = __builtin_convertvector(sums[q].part[part], Vector);
                    reached[q] |= sum * scale + error * own[q].share >= own_cuts[q];
                }
            }
            for (int q = 0; q < Q; q++) {
                if (!any(reached[q])) continue;
                take(query + q, panel, sums[q]);
                cuts[q] = cut(query + q);
            }
        }
    }

    // The largest offset of a panel, in units of the query.
    float peak(int64_t query, int64_t panel) const {
        const float *peaks = search.peaks[query];
        if (!peaks) return 0;
        const float largest = peaks[panel] + fabsf(peaks[panel]) * 0x1p-20f;
        // Where all are left out it is no number, and stays none.
        return std::max(largest / queries.each.data[query].unit, -FLT_MAX);
    }

    // What a bound, in units of the query, is at least where an item is looked at; no number where
    // there are too many. Above FLT_MAX, a peak of infinity would be taken from infinity.
    float cut(int64_t query) const {
        const Queries::One &own = queries.each.data[query];
        const float wanted = least[query].load(std::memory_order_relaxed);
        if (!own.fair) return INFINITY;
        return std::min((wanted - fabsf(wanted) * 0x1p-20f) / own.unit, FLT_MAX);
    }

    __attribute__((noinline)) void take(int64_t query, int64_t panel, const Sums &given) {
        const Queries::One &own = queries.each.data[query];
        const float *offsets = search.offsets[query];
        float wanted = least[query].load(std::memory_order_relaxed);
        alignas(64) float upper[PANEL], lower[PANEL];
        alignas(64) int32_t sums[PANEL];
        memcpy(sums, &given, sizeof sums);
        for (int64_t lane = 0; lane < PANEL; lane++) {
            const float score = (float)sums[lane] * search.scales[panel * PANEL + lane] * own.unit;
            const float error = search.errors[panel * PANEL + lane] * own.norm;
            upper[lane] = score + error, lower[lane] = score - error;
        }
        // What is left out becomes no number, which reaches nothing.
        if (offsets) {
            for (int64_t lane = 0; lane < PANEL; lane++) {
                const float offset = offsets[panel * PANEL + lane];
                const float slack = fabsf(offset) * 0x1p-21f;
                upper[lane] += offset + slack, lower[lane] += offset - slack;
            }
        }
        int64_t reached = 0, lanes[PANEL];
        for (int64_t lane = 0; lane < PANEL; lane++) {
            lanes[reached] = lane;
            reached += upper[lane] >= wanted;
        }
        for (int64_t i = 0; i < reached; i++) {
            const int64_t lane = lanes[i], item = panel * PANEL + lane;
            if (is_seen(query, item)) continue;
            Candidates &all = mine[query];
            if (all.count == all.limit) {
                wanted = raised(query, kth_lower(&all, 1, 1, search.k));
                all.keep(wanted);
                all.full = all.count == search.room;
                all.limit = std::min(search.room, all.count + all.count / 2 + 32);
            }
            if (all.full) {
                least[query] = INFINITY;
                return;
            }
            if (upper[lane] >= wanted) all.put(upper[lane], key_of(lower[lane]), (int32_t)item);
        }
    }

    // The larger of this and what other threads have found.
    float raised(int64_t query, float found) {
        float before = least[query].load(std::memory_order_relaxed);
        while (before < found && !least[query].compare_exchange_weak(before, found)) {
        }
        return std::max(before, found);
    }

    bool is_seen(int64_t query, int64_t item) const {
        const int64_t *starts = search.seen_starts + query;
        return std::binary_search(search.seen + starts[0], search.seen + starts[1], item);
    }
};

// Candidates of all queries for each thread.
struct Rooms {
    Buffer<Candidates> each;
    Buffer<float> upper;
    Buffer<int32_t> lower, items;

    Rooms(const Search &search, int64_t workers)
        : each(workers * search.count), upper(size(search, workers)),
          lower(size(search, workers)), items(size(search, workers)) {
        if (!ready()) return;
        const int64_t limit = std::min(search.room, search.k + search.k / 2 + 32);
        for (int64_t i = 0; i < workers * search.count; i++) {
            const int64_t first = i * search.room;
            each.data[i] = {
                upper.data + first, lower.data + first, items.data + first, 0, limit, false};
        }
    }

    static int64_t size(const Search &search, int64_t workers) {
        return search.count * workers * search.room;
    }
    bool ready() const { return each.data && upper.data && lower.data && items.data; }
};

extern "C" int blossom_search(Search *given) {
    const Search &search = *given;
    const Queries queries(search);
    const int64_t panels = search.items / PANEL, count = search.count, room = search.room;
    const int64_t chunk = std::max<int64_t>(1, CHUNK_BYTES / (queries.pairs * PANEL * 2));
    const int64_t worth = search.items * count / FEW_ITEMS;
    const int64_t workers = std::max<int64_t>(1, std::min(search.threads, worth));
    const Rooms rooms(search, workers);
    Buffer<std::atomic<float>> least(count);
    if (!queries.codes.data || !queries.each.data || !least.data || !rooms.ready())
        return NO_MEMORY;
    for (int64_t query = 0; query < count; query++)
        // Nothing reaches infinity, and nothing else leaves -infinity out.
        least.data[query] = queries.each.data[query].fair ? -FLT_MAX : INFINITY;
    std::atomic<int64_t> next{0};
    const Status failed = in_parallel(workers, workers, 1, 0, [&](int64_t number, Vector *) {
        Worker worker{search, queries, least.data, rooms.each.data + number * count};
        for (int64_t first; (first = next.fetch_add(chunk)) < panels;)
            worker.chunk(first, std::min(panels, first + chunk));
    });
    if (failed) return failed;
    return in_parallel(count, workers, FEW_QUERIES, 0, [&](int64_t query, Vector *) {
        const Candidates *lists = rooms.each.data + query;
        const float wanted =
            std::max(least.data[query].load(), kth_lower(lists, workers, count, search.k));
        bool full = !queries.each.data[query].fair;
        int64_t found = 0;
        for (int64_t worker = 0; worker < workers; worker++) {
            const Candidates &own = lists[worker * count];
            full |= own.full;
            for (int64_t i = 0; i < own.count && !full; i++) {
                if (own.upper[i] < wanted) continue;
                full = found == room;
                if (!full) search.found[query * room + found++] = own.items[i];
            }
        }
        search.counts[query] = full ? -1 : found;
    });
}
