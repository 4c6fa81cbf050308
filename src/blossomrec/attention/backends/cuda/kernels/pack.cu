// Keys and values of every block, as tensor cores take them: a block is one contiguous run.

extern "C" __global__ void __launch_bounds__(32 * TOGETHER) pack_blocks(
    const u16 *__restrict__ k, const u16 *__restrict__ v, const int *__restrict__ table,
    uint4 *__restrict__ packed, int k_event, int k_head, int v_event, int v_head,
    int transposed
) {
    const int lane = this_lane(), g = lane / 4, c = lane % 4;
    const int tile = this_tile(), group = this_group();
    const Tile at(table, tile);
    if (at.empty()) return;
    const int upper = at.first() + g, lower = upper + 8;
    const bool held = upper < at.length, also = lower < at.length;
    const u16 *row_k = row_at(k, at.start + upper, k_event) + group * k_head;
    const u16 *row_v = row_at(v, at.start + upper, v_event) + group * v_head;
    uint4 keys[STEPS], values[STEPS];
    load_rows(keys, row_k, row_k + 8 * k_event, c, held, also);
    load_rows(values, row_v, row_v + 8 * v_event, c, held, also);
    uint4 *place = packed_block(packed, tile, group, lane);
    for (int s = 0; s < STEPS; ++s) {
        place[s * 32] = keys[s];
        place[(STEPS + s) * 32] = transposed ? turned(values[s]) : values[s];
    }
}
