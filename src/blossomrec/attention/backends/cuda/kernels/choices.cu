// What chosen blocks give to gradients of queries, where it comes along the inverse lists: R heads
// of each choice have written it down in the place of the choice, [T, G, N, R, D]. Here events add
// up what is theirs.
//
// Of each 16 numbers, 2c, 2c + 1, 2c + 8 and 2c + 9 stand side by side, in grad_q, too: as those who
// computed them had them.

#define PARTS (D / 8)          // lanes of a row of a head
#define ROWS_OF_A_WARP (32 / PARTS)

// Puts sixteen numbers in order, of which two lanes have eight each: of every four, two go to the first
// lane and two to the second.
INLINE void put_in_order(float (&x)[8], int lane) {
    const bool second = lane % 2;
    float mine[4], others[4];
    for (int i = 0; i < 4; ++i) {
        const float of_first = x[i / 2 * 4 + i % 2], of_second = x[i / 2 * 4 + i % 2 + 2];
        mine[i] = second ? of_second : of_first;
        others[i] = across(second ? of_first : of_second, 1);
    }
    for (int i = 0; i < 4; ++i) {
        x[i] = second ? others[i] : mine[i];
        x[4 + i] = second ? mine[i] : others[i];
    }
}

INLINE void add_halves(float (&sum)[8], uint4 x, bool held) {
    const u32 words[4] = {x.x, x.y, x.z, x.w};
    for (int i = 0; i < 4; ++i)
        if (held) sum[2 * i] += low(words[i]), sum[2 * i + 1] += high(words[i]);
}

// Adds what came along the lists to the gradients of queries and of gates.
//
// slopes [T, G, N, R]: of each choice the sum of the gradients of its scores, of a union, else of
// weights times slopes. near [SOFTMAXES, T, H]: `grad_gates` of near_queries.cu.
extern "C" __global__ void __launch_bounds__(32 * TOGETHER) add_choices(
    const int *__restrict__ selected, const u16 *__restrict__ parts,
    const float *__restrict__ slopes, const float *__restrict__ near, u16 *__restrict__ grad_q,
    Gates *__restrict__ grad_gates, int rows
) {
    const int lane = this_lane();
    // From the last row to the first: what was written last may still be in the cache.
    const int number = rows - 1 - this_warp() * ROWS_OF_A_WARP - lane / PARTS;
    const int row = max(number, 0);
    const int event = row / HEADS, head = row % HEADS, part = lane % PARTS;
    const int first = (event * G + head / R) * N;
    uint4 *to = reinterpret_cast<uint4 *>(row_at(grad_q, row, D) + 8 * part);
    // Fetched whether there is a choice or not: nothing waits for anything.
    bool held[N];
    uint4 given[N];
    float each[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        held[j] = selected[first + j] >= 0;
        const u16 *from = row_at(parts, first + j, R * D) + head % R * D + 8 * part;
        given[j] = *reinterpret_cast<const uint4 *>(from);
        each[j] = slopes[(first + j) * R + head % R];
    }
    float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}, slope = 0.0f;
    add_halves(sum, *to, true);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        add_halves(sum, given[j], held[j]);
        if (held[j]) slope += each[j];
    }
    put_in_order(sum, lane);
    if (number < 0) return;
    *to = make_uint4(
        pair(sum[0], sum[1]), pair(sum[2], sum[3]), pair(sum[4], sum[5]), pair(sum[6], sum[7]));
    if (part) return;
#if UNION
    // As all gradients of scores sum up to 0, so does this; the mean of both suffers half as much
    // by the rounding of out.
    grad_gates[row] = (u16)(pair(0.5f * (near[row] - slope), 0.0f) & 0xffff);
#else
    grad_gates[row] = pair(near[row] + slope, near[rows + row]);
#endif
}
