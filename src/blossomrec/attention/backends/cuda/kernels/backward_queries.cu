// Backward of the queries and gates: one warp is one block of queries and one group of heads,
// see queries.cuh.

INLINE void add_keys(float (&sum)[STEPS][4], const uint4 (&keys)[STEPS], uint2 slopes) {
    for (int s = 0; s < STEPS; ++s) product(sum[s], turned(keys[s]), slopes.x, slopes.y);
}

// Writes numbers of the columns 2c and 2c + 1.
INLINE void store_two(
    u16 *to, const float (&x)[2], const int (&place)[2], const Unit &unit, const Tile &at
) {
#if R > 1
    if (unit.events[0] < at.length) *reinterpret_cast<u32 *>(to + place[0]) = pair(x[0], x[1]);
#else
    for (int i = 0; i < 2; ++i)
        if (unit.events[i] < at.length) to[place[i]] = (u16)(pair(x[i], 0.0f) & 0xffff);
#endif
}

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_QUERIES / TOGETHER) backward_queries(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const Gates *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ selected, const int *__restrict__ table, const u16 *__restrict__ out,
    const float *__restrict__ lse, const u16 *__restrict__ grad, u16 *__restrict__ grad_q,
    Gates *__restrict__ grad_gates, float *__restrict__ shifts, int events, float scale,
    int q_event, int q_head, int k_event, int k_head, int v_event, int v_head
) {
    const int lane = this_lane(), number = this_tile(), group = this_group();
    const Tile at(table, number);
    if (at.empty()) return;
    const int plane = events * HEADS;
    k = row_at(k, at.start, k_event) + group * k_head;
    v = row_at(v, at.start, v_event) + group * v_head;
    const uint4 *home = in_registers(packed_block(packed, number - at.block, group, lane));
    const NearPattern pattern(lane / 4, lane % 4);

#pragma unroll 1
    for (int u = 0; u < UNITS; ++u) {
        const int first = at.first() + u * EVENTS;
        if (first >= at.length) return;
        const Unit unit(lane, first, at.length);
        const NearPattern seen = pattern.later(u * EVENTS);
        const ChosenBlocks chosen(load_choice(selected, at, group, first, lane), lane);
        uint2 queries[STEPS], grads[STEPS], outs[STEPS];
        load_columns(queries, row_at(q, at.start + unit.event, q_event)
            + (group * R + unit.head) * q_head, unit);
        const int row = (at.start + unit.event) * HEADS + group * R + unit.head;
        load_columns(grads, row_at(grad, row, D), unit);
        load_columns(outs, row_at(out, row, D), unit);
        float gate[2][2], logs[SOFTMAXES][2], shift[SOFTMAXES][2];   // [long or short][column]
        int places[2];
        load_paths(gate, logs, shift, places, gates, lse, plane, unit, at, group);
        float lost[2][2];   // gate * shift, [long or short][column]
        float bias[2], bias_slopes[2] = {0.0f, 0.0f}, sum[STEPS][4];
        load_bias(bias, gates, unit, at, group, scale);
        if (UNION) {
            row_products(lost[0], outs, grads, unit.c);
            for (int s = 0; s < STEPS; ++s) clear(sum[s]);
        }

        float near[NEAR_STEPS][4], near_slopes[NEAR_STEPS][4], own_long[4];
        for (int step = 0; step < NEAR_STEPS; ++step) {
            start(near[step], bias), clear(near_slopes[step]);
            const uint4 *place = block_at(home, near_block(at, step));
            uint4 keys[STEPS], values[STEPS];
            load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
            multiply(near[step], keys, queries);
            multiply(near_slopes[step], values, grads);
            hide_unseen(near[step], own_long, seen, bias, at, 0, step, unit.g);
            weigh_again(near[step], near_slopes[step], logs[OF_SHORT], shift[OF_SHORT], scale);
            if (!UNION) continue;
            steepen(near[step], near_slopes[step], gate[0], lost[0]);
            for (int i = 0; i < 4; ++i) {
                const bool raised = step != OWN || seen.sees(i % 2, 0, 0, i / 2);
                bias_slopes[i % 2] += raised ? near[step][i] : -near[step][i];
            }
            add_keys(sum, keys, as_rows(near[step]));
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
                start(scores, bias);
                multiply(scores, rows_k, queries);
                multiply(slopes[step], rows_v, grads);
                for (int i = 0; i < 4; ++i)
                    if (keys.held[i / 2] && (2 * unit.c + i % 2) / R == keys.event[i / 2])
                        far[step][i] = scores[i];
                if (UNION) {
                    weigh_again(far[step], slopes[step], logs[0], shift[0], scale);
                    steepen(far[step], slopes[step], gate[0], lost[0]);
                    for (int i = 0; i < 4; ++i) bias_slopes[i % 2] += far[step][i];
                    add_keys(sum, rows_k, as_rows(far[step]));
                }
            }
            if (!UNION)
                weigh_again(far[step], slopes[step], logs[OF_SHORT], shift[OF_SHORT], scale);
        }
        if (!UNION) {
            row_products(lost[0], outs, grads, unit.c);
            for (int i = 0; i < 2; ++i) {
                shift[OF_SHORT][i] = sum_of_rows(shift[OF_SHORT][i]);
                lost[1][i] = gate[1][i] * shift[OF_SHORT][i];
                lost[0][i] -= lost[1][i];
            }
            for (int s = 0; s < STEPS; ++s) clear(sum[s]);
        }
        for (int step = 0; step < NEAR_STEPS && !UNION; ++step) {
            uint4 keys[STEPS];
            load_matrix(keys, block_at(home, near_block(at, step)));
            steepen(near[step], near_slopes[step], gate[1], lost[1]);
            if (step == OWN) {
                weigh_again(own_long, near_slopes[step], logs[0], shift[0], scale);
                steepen(own_long, near_slopes[step], gate[0], lost[0]);
                for (int i = 0; i < 4; ++i) near[step][i] += own_long[i];
            }
            add_keys(sum, keys, as_rows(near[step]));
        }
        for (int step = 0; step < FAR_TOTAL && !UNION; ++step) {
            if (!far_step_needed(step, at.first(), at.length)) continue;
            const FarKeys keys(step, unit.g, first, at.length);
            uint4 rows[STEPS];
            load_far(rows, k, keys, k_event, unit.c);
            steepen(far[step], slopes[step], gate[1], lost[1]);
            add_keys(sum, rows, as_rows(far[step]));
        }
        for (int j = 0; j < N; ++j) {
            float scores[4], score_slopes[4];
            clear(scores), clear(score_slopes);
            uint4 keys[EVENTS][STEPS];
            for (int e = 0; e < EVENTS; ++e) {
                const uint4 *place = chosen.place(home, j * EVENTS + e);
                uint4 values[STEPS];
                load_matrix(keys[e], place), load_matrix(values, place + STEPS * 32);
                multiply_own(scores, keys[e], queries, unit.owns(e));
                multiply_own(score_slopes, values, grads, unit.owns(e));
            }
            if (!chosen.complete()) chosen.hide_unseen(scores, j, unit);
            weigh_again(scores, score_slopes, logs[0], shift[0], scale);
            steepen(scores, score_slopes, gate[0], lost[0]);
            for (int i = 0; i < 4; ++i) bias_slopes[i % 2] -= scores[i];
            const uint2 rows = as_rows(scores);
            for (int e = 0; e < EVENTS; ++e)
                add_keys(sum, keys[e], zero_unless(unit.owns(e), rows));
        }
        for (int i = 0; i < 2; ++i) {
            // Summed up over the keys, this shift is free of the rounding of the output.
            if (!UNION) shift[0][i] = sum_of_rows(shift[0][i]);
            if (UNION) bias_slopes[i] = 0.5f * sum_of_rows(bias_slopes[i]);
        }
        for (int s = 0; s < STEPS; ++s) {
            for (int i = 0; i < 4; ++i) sum[s][i] *= scale * LN_2;
            store_columns(row_at(grad_q, row, D), sum[s], unit, s);
        }
        if (unit.g == 0) {
            if (UNION) store_two((u16 *)grad_gates, bias_slopes, places, unit, at);
            for (int i = 0; i < 2; ++i) {
                if (unit.events[i] >= at.length) continue;
                if (!UNION) grad_gates[places[i]] = pair(shift[0][i], shift[OF_SHORT][i]);
                for (int path = 0; path < SOFTMAXES; ++path)
                    shifts[path * plane + places[i]] = UNION ? lost[0][i] : shift[path][i];
            }
        }
    }
}
