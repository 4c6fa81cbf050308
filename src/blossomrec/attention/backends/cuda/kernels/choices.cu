// What chosen blocks give to gradients of queries, where it comes along the inverse lists (LISTED):
// R heads of each choice have written it down in the place of the choice, [T, G, N, R, D]. Here
// events add up what is theirs.

#define PARTS (D / 4)          // lanes of a row of a head
#define ROWS_OF_A_WARP (32 / PARTS)

// Adds what came along the lists to the gradients of queries and of gates.
//
// slopes [T, G, N, R]: of each choice the sum of the gradients of its scores, of a union, else of
// weights times slopes. near [SOFTMAXES, T, H]: `grad_gates` of backward_queries.cu.
extern "C" __global__ void __launch_bounds__(32 * TOGETHER) add_choices(
    const int *__restrict__ selected, const u16 *__restrict__ parts,
    const float *__restrict__ slopes, const float *__restrict__ near, u16 *__restrict__ grad_q,
    Gates *__restrict__ grad_gates, int rows
) {
    const int lane = this_lane(), row = this_warp() * ROWS_OF_A_WARP + lane / PARTS;
    if (row >= rows) return;
    const int event = row / HEADS, head = row % HEADS, part = lane % PARTS;
    const int first = (event * G + head / R) * N;
    uint2 *to = reinterpret_cast<uint2 *>(row_at(grad_q, row, D) + 4 * part);
    float sum[4] = {low(to->x), high(to->x), low(to->y), high(to->y)}, slope = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const bool held = selected[first + j] >= 0;
        const uint2 x = four(row_at(parts, first + j, R * D) + head % R * D + 4 * part, held);
        sum[0] += low(x.x), sum[1] += high(x.x), sum[2] += low(x.y), sum[3] += high(x.y);
        if (held) slope += slopes[(first + j) * R + head % R];
    }
    *to = make_uint2(pair(sum[0], sum[1]), pair(sum[2], sum[3]));
    if (part) return;
#if UNION
    // As all gradients of scores sum up to 0, so does this; the mean of both suffers half as much
    // by the rounding of out.
    grad_gates[row] = (u16)(pair(0.5f * (near[row] - slope), 0.0f) & 0xffff);
#else
    grad_gates[row] = pair(near[row] + slope, near[rows + row]);
#endif
}
