// Counts choices list by list, see listing.cuh. COUNTERS, given when compiled: lists that a warp counts
// at a time.

#define AHEAD 8   // steps whose choices are fetched ahead

#ifndef EMULATED
// Lanes that have the same number, as bits.
INLINE u32 lanes_like(int x) { return __match_any_sync(0xffffffffu, x); }
INLINE int number_of_bits(u32 x) { return __popc(x); }
INLINE void wait_for_lanes() { __syncwarp(); }
#endif

// Tiles of a segment, and those of blocks that its events may have chosen.
struct Segment {
    int first, end, lowest, highest;

    INLINE Segment(const int *table, int number, int size, int tiles) {
        first = number * size, end = min(first + size, tiles);
        const Tile begin(table, first), last(table, end - 1);
        lowest = first - begin.block;
        const int behind = end - 1 - last.block + (last.length + SIZE - 1) / SIZE;
        highest = begin.empty() ? lowest : CAUSAL ? end : max(end, behind);
    }
};

// Ranks of choices, and how many each list has in each segment, [segments, lists]. Marks chunks as
// those of no list, see keys.cuh, and all room for lists as free.
extern "C" __global__ void __launch_bounds__(32) count_choices(
    const int *__restrict__ selected, const int *__restrict__ table, int *__restrict__ ranks,
    int *__restrict__ counts, int *__restrict__ owners, int *__restrict__ used, int tiles,
    int size, int segments, int warps, int chunks
) {
    __shared__ int counters[COUNTERS];
    const int lane = this_lane(), warp = this_warp();
    const int number = warp % segments, group = warp / segments % G, part = warp / segments / G;
    for (int n = warp * 32 + lane; n < chunks; n += warps * 32) owners[n] = -1;
    if (warp == 0 && lane == 0) *used = 0;

    const Segment segment(table, number, size, tiles);
    const int lowest = segment.lowest + part * COUNTERS;
    const int held = min(COUNTERS, segment.highest - lowest);
    if (held <= 0) return;
    for (int n = lane; n < held; n += 32) counters[n] = 0;
    wait_for_lanes();
#pragma unroll 1
    for (int first = segment.first; first < segment.end; first += 32) {
        const Choices mine(table, min(first + lane, segment.end - 1));
        const int steps = min(32, segment.end - first) * STEPS_OF_TILE;
        const auto place_of = [&](int step) {
            Choices choices = mine;
            choices.first = from_lane(mine.first, step / STEPS_OF_TILE);
            choices.events = from_lane(mine.events, step / STEPS_OF_TILE);
            return step < steps ? choices.place(group, step % STEPS_OF_TILE, lane) : -1;
        };
        int places[AHEAD], blocks[AHEAD];
        const auto fetch = [&](int n, int step) {
            places[n] = place_of(step);
            blocks[n] = places[n] < 0 ? -1 : selected[places[n]];
        };
#pragma unroll
        for (int n = 0; n < AHEAD; ++n) fetch(n, n);
#pragma unroll 1
        for (int step = 0; step < steps; step += AHEAD) {
#pragma unroll
            for (int n = 0; n < AHEAD; ++n) {
                const int place = places[n], block = blocks[n];
                const int home = from_lane(mine.home, (step + n) / STEPS_OF_TILE);
                fetch(n, step + n + AHEAD);
                const int counter = home + block - lowest;
                const bool counted = block >= 0 && counter >= 0 && counter < held;
                const u32 alike = lanes_like(counted ? counter : -1);
                const int before = number_of_bits(alike & ((1u << lane) - 1));
                const int rank = counted ? counters[counter] + before : 0;
                wait_for_lanes();
                if (counted && before == 0) counters[counter] = rank + number_of_bits(alike);
                if (counted) ranks[place] = rank;
                wait_for_lanes();
            }
        }
    }
    int *out = counts + number * (tiles * G) + lowest * G + group;
    for (int n = lane; n < held; n += 32) out[n * G] = counters[n];
}
