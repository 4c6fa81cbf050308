// Forward: one warp is one block of queries and one group of heads. Both paths are softmaxes over
// scores that are all kept in registers.

INLINE float top_of(const float (&scores)[4], int i, float top) {
    return fmaxf(top, fmaxf(scores[i], scores[i + 2]));
}

// Scores to weights relative to the scaled top of their column, and their sums.
INLINE void weigh(float (&scores)[4], const float (&top)[2], float (&total)[2], float scale) {
    for (int i = 0; i < 4; ++i) {
        scores[i] = exp_2(scores[i] * scale - top[i % 2]);
        total[i % 2] += scores[i];
    }
}

INLINE void add_values(float (&mean)[STEPS][4], const uint4 (&values)[STEPS], uint2 weights) {
    for (int s = 0; s < STEPS; ++s) product(mean[s], values[s], weights.x, weights.y);
}

extern "C" __global__ void __launch_bounds__(32, WARPS_FORWARD) forward(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const u32 *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ selected, const int *__restrict__ table, u16 *__restrict__ out,
    float *__restrict__ lse, int events, float scale, int q_event, int q_head,
    int k_event, int k_head, int v_event, int v_head
) {
    const int lane = this_lane(), number = blockIdx.x / G, group = blockIdx.x % G;
    const Tile at(table, number);
    if (at.empty()) return;
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
        uint2 queries[STEPS];
        load_columns(queries, row_at(q, at.start + unit.event, q_event)
            + (group * R + unit.head) * q_head, unit);

        // Long-term scores: the own block, then the chosen ones.
        float far_long[N][4], own_long[4];
        for (int j = 0; j < N; ++j) {
            clear(far_long[j]);
            for (int e = 0; e < EVENTS; ++e) {
                uint4 keys[STEPS];
                load_matrix(keys, block_at(home, chosen[e * N + j]));
                multiply_own(far_long[j], keys, queries, unit.owns(e));
            }
            for (int i = 0; i < 2; ++i)
                if (!has_choice(chosen, j, unit.c, i))
                    far_long[j][i] = far_long[j][i + 2] = -INFINITE;
        }
        // Short-term scores: near blocks, among them the own one, and far powers of two.
        float near[NEAR_STEPS][4], far[FAR_TOTAL > 0 ? FAR_TOTAL : 1][4];
        for (int step = 0; step < NEAR_STEPS; ++step) {
            clear(near[step]);
            uint4 keys[STEPS];
            const uint4 *place = block_at(home, near_block(at, step));
            load_matrix(keys, place);
            multiply(near[step], keys, queries);
            hide_unseen(near[step], own_long, pattern, at, u * EVENTS, step, unit.g);
        }
        for (int step = 0; step < FAR_TOTAL; ++step) {
            for (int i = 0; i < 4; ++i) far[step][i] = -INFINITE;
            if (!far_step_needed(step, at.first(), at.length)) continue;
            const FarKeys keys(step, unit.g, first, at.length);
            uint4 rows[STEPS];
            load_far(rows, k, keys, k_event, unit.c);
            float scores[4];
            clear(scores);
            multiply(scores, rows, queries);
            for (int i = 0; i < 4; ++i)
                if (keys.held[i / 2] && (2 * unit.c + i % 2) / R == keys.event[i / 2])
                    far[step][i] = scores[i];
        }

        float top[2][2], total[2][2];   // [long or short][column]
        for (int i = 0; i < 2; ++i) {
            // Columns behind the end see nothing and must not give NaN.
            float long_top = top_of(own_long, i, -1e30f), short_top = -1e30f;
            for (int j = 0; j < N; ++j) long_top = top_of(far_long[j], i, long_top);
            for (int step = 0; step < NEAR_STEPS; ++step)
                short_top = top_of(near[step], i, short_top);
            for (int step = 0; step < FAR_TOTAL; ++step)
                short_top = top_of(far[step], i, short_top);
            top[0][i] = max_of_rows(long_top) * scale, top[1][i] = max_of_rows(short_top) * scale;
            total[0][i] = total[1][i] = 0.0f;
        }
        weigh(own_long, top[0], total[0], scale);
        for (int j = 0; j < N; ++j) weigh(far_long[j], top[0], total[0], scale);
        for (int step = 0; step < NEAR_STEPS; ++step) weigh(near[step], top[1], total[1], scale);
        for (int step = 0; step < FAR_TOTAL; ++step) weigh(far[step], top[1], total[1], scale);

        float long_mean[STEPS][4], short_mean[STEPS][4];
        for (int s = 0; s < STEPS; ++s) clear(long_mean[s]), clear(short_mean[s]);
        for (int j = 0; j < N; ++j) {
            const uint2 weights = as_rows(far_long[j]);
            for (int e = 0; e < EVENTS; ++e) {
                uint4 values[STEPS];
                load_matrix(values, block_at(home, chosen[e * N + j]) + STEPS * 32);
                add_values(long_mean, values, zero_unless(unit.owns(e), weights));
            }
        }
        for (int step = 0; step < NEAR_STEPS; ++step) {
            const uint4 *place = block_at(home, near_block(at, step));
            uint4 near_values[STEPS];
            load_matrix(near_values, place + STEPS * 32);
            add_values(short_mean, near_values, as_rows(near[step]));
            if (step == OWN) add_values(long_mean, near_values, as_rows(own_long));
        }
        for (int step = 0; step < FAR_TOTAL; ++step) {
            if (!far_step_needed(step, at.first(), at.length)) continue;
            const FarKeys keys(step, unit.g, first, at.length);
            uint4 rows[STEPS];
            load_far(rows, v, keys, v_event, unit.c);
            for (int s = 0; s < STEPS; ++s) rows[s] = turned(rows[s]);
            add_values(short_mean, rows, as_rows(far[step]));
        }

        float factor[2][2];
        int places[2];
        u32 gate[2];
        places_of(places, unit, at, group);
        load_two(gate, gates, places);
        for (int path = 0; path < 2; ++path)
            for (int i = 0; i < 2; ++i) {
                total[path][i] = sum_of_rows(total[path][i]);
                factor[path][i] = quotient(path ? high(gate[i]) : low(gate[i]), total[path][i]);
            }
        if (unit.g == 0)
            for (int i = 0; i < 2; ++i)
                for (int path = 0; path < 2; ++path)
                    if (unit.events[i] < at.length)
                        lse[path * events * HEADS + places[i]] =
                            top[path][i] + log_2(total[path][i]);
        u16 *row = row_at(out, (at.start + unit.event) * HEADS + group * R + unit.head, D);
        for (int s = 0; s < STEPS; ++s) {
            float result[4];
            for (int i = 0; i < 4; ++i)
                result[i] = long_mean[s][i] * factor[0][i % 2] + short_mean[s][i] * factor[1][i % 2];
            store_columns(row, result, unit, s);
        }
    }
}
