// Where inverse lists begin, see keys.cuh.

#define STARTS_OF_A_WARP 256

extern "C" __global__ void __launch_bounds__(32 * TOGETHER) list_starts(
    const List *__restrict__ sorted, int *__restrict__ starts, int entries, int lists
) {
    const int first = this_warp() * STARTS_OF_A_WARP + this_lane();
    for (int at = first; at < first + STARTS_OF_A_WARP && at <= entries; at += 32) {
        const int last = at < entries ? sorted[at] : lists;
        for (int list = at ? sorted[at - 1] + 1 : 0; list <= last; ++list) starts[list] = at;
    }
}
