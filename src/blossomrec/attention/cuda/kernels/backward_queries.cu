// Backward of the queries and gates: one warp is one block of queries and one group of heads.
//
// Of a softmax with weights w over values v the gradient of a score is w * (slope - shift), with
// slope = grad . v and shift = sum(w * slope), which is also the gradient of the path's gate.

// Scores and slopes to weights, given the normaliser of each column; adds up w * slope.
INLINE void weigh_again(
    float (&scores)[4], const float (&slopes)[4], const float (&normaliser)[2], float (&shift)[2],
    float scale
) {
    for (int i = 0; i < 4; ++i) {
        scores[i] = exp_2(scores[i] * scale - normaliser[i % 2]);
        shift[i % 2] += scores[i] * slopes[i];
    }
}

INLINE void add_keys(float (&sum)[STEPS][4], const uint4 (&keys)[STEPS], uint2 slopes) {
    for (int s = 0; s < STEPS; ++s) product(sum[s], turned(keys[s]), slopes.x, slopes.y);
}

extern "C" __global__ void __launch_bounds__(32, WARPS_QUERIES) backward_queries(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const u32 *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ selected, const int *__restrict__ table,
    const float *__restrict__ normalisers, const u16 *__restrict__ grad, u16 *__restrict__ grad_q,
    u32 *__restrict__ grad_gates, float *__restrict__ shifts, List *__restrict__ lists, int tiles,
    int events, float scale, int q_event, int q_head, int k_event, int k_head, int v_event,
    int v_head
) {
    const int lane = this_lane(), number = blockIdx.x / G, group = blockIdx.x % G;
    const Tile at(table, number);
    if (at.empty()) return;
    const int plane = events * HEADS;
    k = row_at(k, at.start, k_event) + group * k_head;
    v = row_at(v, at.start, v_event) + group * v_head;
    const uint4 *home = packed_block(packed, number - at.block, group, lane);
    const NearPattern pattern(lane / 4, lane % 4);

#pragma unroll 1
    for (int u = 0; u < UNITS; ++u) {
        const int first = at.first() + u * EVENTS;
        if (first >= at.length) return;
        const Unit unit(lane, first, at.length);
        int chosen[EVENTS * N];
        load_choices(chosen, selected, at, group, first);
        uint2 queries[STEPS], grads[STEPS];
        load_columns(queries, row_at(q, at.start + unit.event, q_event)
            + (group * R + unit.head) * q_head, unit);
        const int row = (at.start + unit.event) * HEADS + group * R + unit.head;
        load_columns(grads, row_at(grad, row, D), unit);
        float gate[2][2], normaliser[2][2], shift[2][2];   // [long or short][column]
        int places[2];
        u32 both[2];
        places_of(places, unit, at, group);
        load_two(both, gates, places);
        for (int path = 0; path < 2; ++path) {
            load_two(normaliser[path], normalisers + path * plane, places);
            for (int i = 0; i < 2; ++i) {
                gate[path][i] = path ? high(both[i]) : low(both[i]);
                shift[path][i] = 0.0f;
            }
        }

        float far_long[N][4], far_slopes[N][4], own_long[4];
        for (int j = 0; j < N; ++j) {
            clear(far_long[j]), clear(far_slopes[j]);
            for (int e = 0; e < EVENTS; ++e) {
                const uint4 *place = block_at(home, chosen[e * N + j]);
                uint4 keys[STEPS], values[STEPS];
                load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
                multiply_own(far_long[j], keys, queries, unit.owns(e));
                multiply_own(far_slopes[j], values, grads, unit.owns(e));
            }
            for (int i = 0; i < 2; ++i)
                if (!has_choice(chosen, j, unit.c, i))
                    far_long[j][i] = far_long[j][i + 2] = -INFINITE;
            weigh_again(far_long[j], far_slopes[j], normaliser[0], shift[0], scale);
        }
        float near[NEAR_STEPS][4], near_slopes[NEAR_STEPS][4];
        for (int step = 0; step < NEAR_STEPS; ++step) {
            clear(near[step]), clear(near_slopes[step]);
            const uint4 *place = block_at(home, near_block(at, step));
            uint4 keys[STEPS], values[STEPS];
            load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
            multiply(near[step], keys, queries);
            multiply(near_slopes[step], values, grads);
            hide_unseen(near[step], own_long, pattern, at, u * EVENTS, step, unit.g);
            if (step == OWN)
                weigh_again(own_long, near_slopes[step], normaliser[0], shift[0], scale);
            weigh_again(near[step], near_slopes[step], normaliser[1], shift[1], scale);
        }
        float far[FAR_TOTAL][4], slopes[FAR_TOTAL][4];
        for (int step = 0; step < FAR_TOTAL; ++step) {
            for (int i = 0; i < 4; ++i) far[step][i] = -INFINITE;
            clear(slopes[step]);
            if (far_step_needed(step, at.first(), at.length)) {
                const FarKeys keys(step, unit.g, first, at.length);
                uint4 rows_k[STEPS], rows_v[STEPS];
                load_far(rows_k, k, keys, k_event, unit.c);
                load_far(rows_v, v, keys, v_event, unit.c);
                float scores[4];
                clear(scores);
                multiply(scores, rows_k, queries);
                multiply(slopes[step], rows_v, grads);
                for (int i = 0; i < 4; ++i)
                    if (keys.held[i / 2] && (2 * unit.c + i % 2) / R == keys.event[i / 2])
                        far[step][i] = scores[i];
            }
            weigh_again(far[step], slopes[step], normaliser[1], shift[1], scale);
        }

        for (int path = 0; path < 2; ++path)
            for (int i = 0; i < 2; ++i) shift[path][i] = sum_of_rows(shift[path][i]);
        if (unit.g == 0)
            for (int i = 0; i < 2; ++i) {
                if (unit.events[i] >= at.length) continue;
                grad_gates[places[i]] = pair(shift[0][i], shift[1][i]);
                for (int path = 0; path < 2; ++path)
                    shifts[path * plane + places[i]] = gate[path][i] * shift[path][i];
            }
        float sum[STEPS][4];
        for (int s = 0; s < STEPS; ++s) clear(sum[s]);
        for (int j = 0; j < N; ++j) {
            float steep[4];
            for (int i = 0; i < 4; ++i)
                steep[i] = far_long[j][i] * gate[0][i % 2] * (far_slopes[j][i] - shift[0][i % 2]);
            const uint2 rows = as_rows(steep);
            for (int e = 0; e < EVENTS; ++e) {
                uint4 keys[STEPS];
                load_matrix(keys, block_at(home, chosen[e * N + j]));
                add_keys(sum, keys, zero_unless(unit.owns(e), rows));
            }
        }
        for (int step = 0; step < NEAR_STEPS; ++step) {
            uint4 keys[STEPS];
            load_matrix(keys, block_at(home, near_block(at, step)));
            float steep[4];
            for (int i = 0; i < 4; ++i) {
                const float slope = near_slopes[step][i];
                steep[i] = near[step][i] * gate[1][i % 2] * (slope - shift[1][i % 2]);
                if (step == OWN)
                    steep[i] += own_long[i] * gate[0][i % 2] * (slope - shift[0][i % 2]);
            }
            add_keys(sum, keys, as_rows(steep));
        }
        for (int step = 0; step < FAR_TOTAL; ++step) {
            if (!far_step_needed(step, at.first(), at.length)) continue;
            const FarKeys keys(step, unit.g, first, at.length);
            uint4 rows[STEPS];
            load_far(rows, k, keys, k_event, unit.c);
            float steep[4];
            for (int i = 0; i < 4; ++i)
                steep[i] = far[step][i] * gate[1][i % 2] * (slopes[step][i] - shift[1][i % 2]);
            add_keys(sum, rows, as_rows(steep));
        }
        for (int s = 0; s < STEPS; ++s) {
            for (int i = 0; i < 4; ++i) sum[s][i] *= scale * LN_2;
            store_columns(row_at(grad_q, row, D), sum[s], unit, s);
        }
        // The inverse list that each choice belongs to, for the kernel of the keys.
        if (lane < EVENTS * N && first + lane / N < at.length) {
            const int place = ((at.start + first + lane / N) * G + group) * N + lane % N;
            const int block = selected[place];
            lists[place] = block < 0 ? tiles * G : (number - at.block + block) * G + group;
        }
    }
}
