// Makes lists of what was counted, see listing.cuh.

#define LOADS 8   // segments whose counts are fetched at a time

#ifndef EMULATED
INLINE int add_to(int *sum, int x) { return atomicAdd(sum, x); }
#endif

// Where each list begins and ends, and the list of each chunk, see keys.cuh. Counts become those of
// all earlier segments together.
extern "C" __global__ void __launch_bounds__(32 * TOGETHER) find_lists(
    const int *__restrict__ table, int *__restrict__ counts, int *__restrict__ bounds,
    int *__restrict__ owners, int *__restrict__ used, int tiles, int size
) {
    const int lane = this_lane(), list = this_warp() * 32 + lane, lists = tiles * G;
    int total = 0;
    if (list < lists) {
        const int number = list / G;
        const Tile at(table, number);
        const int home = number - at.block, last = home + (at.length - 1) / SIZE;
        const int end = at.empty() ? 0 : last / size + 1;
        for (int first = (CAUSAL ? number : home) / size; first < end; first += LOADS) {
            int each[LOADS];
#pragma unroll
            for (int n = 0; n < LOADS; ++n)
                each[n] = first + n < end ? counts[(first + n) * lists + list] : 0;
#pragma unroll
            for (int n = 0; n < LOADS; ++n) {
                if (first + n < end) counts[(first + n) * lists + list] = total;
                total += each[n];
            }
        }
    }
    int up_to = total;
    for (int apart = 1; apart < 32; apart *= 2) {
        const int before = from_lane(up_to, max(lane - apart, 0));
        if (lane >= apart) up_to += before;
    }
    const int room = lane == 31 ? add_to(used, up_to) : 0;
    const int begin = from_lane(room, 31) + up_to - total, end = begin + total;
    if (list >= lists) return;
    bounds[2 * list] = begin, bounds[2 * list + 1] = end;
    for (int at = begin + CHUNK; at < end; at += CHUNK) owners[at / CHUNK] = list;
}

// Writes the lists.
extern "C" __global__ void __launch_bounds__(32 * TOGETHER) order_choices(
    const int *__restrict__ selected, const int *__restrict__ table,
    const int *__restrict__ ranks, const int *__restrict__ counts,
    const int *__restrict__ bounds, int *__restrict__ order, int tiles, int size
) {
    const int tile = this_warp() / G, group = this_warp() % G;
    if (tile >= tiles) return;
    const Choices choices(table, tile);
    const int *earlier = counts + tile / size * (tiles * G);
#pragma unroll
    for (int step = 0; step < STEPS_OF_TILE; ++step) {
        const int place = choices.place(group, step, this_lane());
        const int block = place < 0 ? -1 : selected[place];
        if (block < 0) continue;
        const int list = (choices.home + block) * G + group;
        order[bounds[2 * list] + earlier[list] + ranks[place]] = place;
    }
}
