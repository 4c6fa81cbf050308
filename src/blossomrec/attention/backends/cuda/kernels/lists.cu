// Chosen blocks along the inverse lists (see backward_keys.cu), for the form LISTED. A block is
// fetched once, and the events that chose it come in turn to it, R heads of each. What they get from
// it is written down in the place of the choice, [T, G, N, R, D], and added up by those who go
// through the events. The larger the heads, the less has to move than if each event fetched its N
// blocks of SIZE keys and values. `sorted` has the list of each entry; the last list is of no block.

extern "C" __global__ void __launch_bounds__(32) choose_lists(
    const int *__restrict__ selected, const int *__restrict__ table, List *__restrict__ lists,
    int tiles
) {
    const int number = blockIdx.x / G, group = blockIdx.x % G;
    const Tile at(table, number);
    for (int i = this_lane(); i < SIZE * N; i += 32) {
        const int event = at.first() + i / N;
        if (event >= at.length) return;
        const int place = ((at.start + event) * G + group) * N + i % N;
        const int block = selected[place];
        lists[place] = block < 0 ? tiles * G : (number - at.block + block) * G + group;
    }
}

#define COLUMNS 2   // products of eight columns side by side

// Queries of the entries of a list from `at` on: EVENTS of them are eight columns.
struct Entries {
    int entry[COLUMNS];         // place in the selection, of column g
    bool held[COLUMNS];
    uint2 queries[COLUMNS][STEPS];

    INLINE void load(
        const u16 *q, const int *order, int at, int high, int q_event, const Unit &unit
    ) {
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            const int place = at + n * EVENTS + unit.g / R;
            held[n] = place < high;
            entry[n] = held[n] ? order[2 * place] : 0;
            const u16 *row = row_at(q, entry[n] / (G * N), q_event) + 4 * unit.c;
            for (int s = 0; s < STEPS; ++s) queries[n][s] = four(row + 16 * s, held[n]);
        }
    }
};

// The mean of a block's values by each event that chose it, and the lse that belongs to it, in the
// places of the choices: means [T, G, N, R, D], logs [T, G, N, R]; -infinity where no key is seen.
extern "C" __global__ void __launch_bounds__(32, WARPS_LISTED) list_forward(
    const u16 *__restrict__ q, const uint4 *__restrict__ packed, const int *__restrict__ table,
    const int *__restrict__ order, const List *__restrict__ sorted,
    const int *__restrict__ starts, u16 *__restrict__ means, float *__restrict__ logs, int entries,
    int lists, float scale, int q_event, int q_head
) {
    const int lane = this_lane(), first = blockIdx.x * CHUNK, last = min(first + CHUNK, entries);
    const Unit unit(lane, 0, 8);
#pragma unroll 1
    for (int low = first; low < last;) {
        const int list = sorted[low], group = list % G;
        if (list == lists) {
            // Nobody looks at means without a weight.
            for (int at = low * R + lane; at < last * R; at += 32)
                logs[order[2 * (at / R)] * R + at % R] = -INFINITE;
            return;
        }
        const int high = min(starts[list + 1], last);
        const uint4 *place = packed_block(packed, list / G, group, lane);
        uint4 keys[STEPS], values[STEPS];
        load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
        const int key = Tile(table, list / G).first_event() + unit.g;
        const u16 *from = q + (group * R + unit.head) * q_head;
        Entries next;
        next.load(from, order, low, high, q_event, unit);
#pragma unroll 1
        for (; low < high; low += COLUMNS * EVENTS) {
            const Entries now = next;
            if (low + COLUMNS * EVENTS < high)
                next.load(from, order, low + COLUMNS * EVENTS, high, q_event, unit);
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
                float scores[4], top[2], total[2], factor[2];
                int entry[2];   // of the columns 2c and 2c + 1
                clear(scores);
                multiply(scores, keys, now.queries[n]);
                for (int i = 0; i < 2; ++i) {
                    entry[i] = i && R > 1 ? entry[0] : from_lane(now.entry[n], 4 * (2 * unit.c + i));
                    const int distance = entry[i] / (G * N) - key;
                    if (UNION && seen_twice(distance)) scores[i] = -INFINITE;
                    if (UNION && seen_twice(distance - 8)) scores[i + 2] = -INFINITE;
                    top[i] = max_of_rows(fmaxf(-1e30f, fmaxf(scores[i], scores[i + 2]))) * scale;
                    total[i] = 0.0f;
                }
                for (int i = 0; i < 4; ++i) {
                    scores[i] = exp_2(scores[i] * scale - top[i % 2]);
                    total[i % 2] += scores[i];
                }
                for (int i = 0; i < 2; ++i) {
                    total[i] = sum_of_rows(total[i]);
                    factor[i] = total[i] > 0.0f ? quotient(1.0f, total[i]) : 0.0f;
                }
                const uint2 weights = as_rows(scores);
                u16 *row = row_at(means, now.entry[n], R * D) + unit.head * D + 4 * unit.c;
                for (int s = 0; s < STEPS; ++s) {
                    float mean[4];
                    clear(mean);
                    product(mean, values[s], weights.x, weights.y);
                    for (int i = 0; i < 4; ++i) mean[i] *= factor[i % 2];
                    const uint2 numbers = as_rows(mean);
                    if (now.held[n]) *reinterpret_cast<uint2 *>(row + 16 * s) = numbers;
                }
                if (unit.g) continue;
                for (int i = 0; i < 2; ++i)
                    if (low + n * EVENTS + unit.events[i] < high)
                        logs[entry[i] * R + unit.heads[i]] = top[i] + log_2(total[i]);
            }
        }
        low = high;
    }
}

#define PARTS (D / 4)          // lanes of a row of a head
#define ROWS_OF_A_WARP (32 / PARTS)

// Adds what came along the lists to the gradients of queries and of gates.
//
// slopes [T, G, N, R]: of each choice the sum of the gradients of its scores, of a union, else of
// weights times slopes. near [SOFTMAXES, T, H]: `grad_gates` of backward_queries.cu.
extern "C" __global__ void __launch_bounds__(32) add_choices(
    const int *__restrict__ selected, const u16 *__restrict__ parts,
    const float *__restrict__ slopes, const float *__restrict__ near, u16 *__restrict__ grad_q,
    Gates *__restrict__ grad_gates, int rows
) {
    const int lane = this_lane(), row = blockIdx.x * ROWS_OF_A_WARP + lane / PARTS;
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
