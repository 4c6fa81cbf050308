// Selection: one warp is one block of queries and one group. Scores stream by and are not kept.
//
// Importance is wanted in float32. A float32 is the sum of three bf16: queries come in three parts,
// block keys in PARTS of them, and of the products those are left out that float32 would not hold.

extern "C" __global__ void __launch_bounds__(32 * TOGETHER) select_blocks(
    const u16 *__restrict__ q, const u16 *__restrict__ keys, const int *__restrict__ table,
    int *__restrict__ selected, int tiles, int rows, int q_event, int q_head
) {
    const int lane = this_lane(), g = lane / 4, c = lane % 4;
    // The last blocks of a history have the most to look at: they go first.
    const int group = this_group();
    const Tile at(table, tiles - 1 - this_tile());
    if (at.empty()) return;
    const int reach = reach_of(at);

    uint4 queries[3][STEPS];
    for (int s = 0; s < STEPS; ++s) {
        u32 first[2][3], second[2][3];
        for (int half = 0; half < 2; ++half) {
            const int event = at.first() + g + 8 * half;
            const u16 *row = row_at(q, at.start + event, q_event) + group * R * q_head;
            split_mean(
                first[half], second[half], row + 16 * s + 4 * c, q_head, event < at.length);
        }
        for (int p = 0; p < 3; ++p)
            queries[p][s] = make_uint4(first[0][p], first[1][p], second[0][p], second[1][p]);
    }

    const int plane = rows * G * D;
    keys += ((at.first_block_key + g) * G + group) * D + 4 * c;
    Best best[2];
    float bound[2] = {-INFINITE, -INFINITE};
#pragma unroll 2
    for (int first = 0; first < reach; first += 8) {
        float scores[4];
        clear(scores);
        for (int s = 0; s < STEPS; ++s) {
            uint2 parts[PARTS];
            for (int p = 0; p < PARTS; ++p)
                parts[p] = four(
                    keys + p * plane + first * G * D + 16 * s, first + g < reach);
            // The smallest products first.
            for (int order = 2; order >= 0; --order)
                for (int p = 0; p < PARTS && p <= order; ++p)
                    product(scores, queries[order - p][s], parts[p].x, parts[p].y);
        }
        for (int i = 0; i < 4; ++i) {
            const int block = first + 2 * c + i % 2;
            if (block >= reach || (!CAUSAL && block == at.block)) scores[i] = -INFINITE;
        }
        if (scores[0] > bound[0] || scores[1] > bound[0] || scores[2] > bound[1]
            || scores[3] > bound[1]) {
            for (int i = 0; i < 4; ++i)
                if (scores[i] > bound[i / 2]) {
                    best[i / 2].add(scores[i], first + 2 * c + i % 2);
                    bound[i / 2] = fmaxf(bound[i / 2], best[i / 2].scores[N - 1]);
                }
        }
        // What passed the other lanes of a row counts from now and then on: few are then worth a look.
        if (first % 64 == 56)
            for (int half = 0; half < 2; ++half)
                bound[half] = fmaxf(bound[half], nth_best(best[half]));
    }
    for (int half = 0; half < 2; ++half)
        store_chosen(selected, best[half], half, at, group, lane);
}
