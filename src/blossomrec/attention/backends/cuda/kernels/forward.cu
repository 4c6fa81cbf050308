// Forward: one warp is one block of queries and one group of heads. Softmaxes are over scores that
// are all kept in registers.

INLINE float top_of(const float (&scores)[4], int i, float top) {
    return fmaxf(top, fmaxf(scores[i], scores[i + 2]));
}

// Weights relative to the scaled top of their column, as rows of a factor B, in the place of
// scores, and their sums.
INLINE uint2 weights_of(
    float (&scores)[4], const float (&top)[2], float (&total)[2], float scale
) {
    for (int i = 0; i < 4; ++i) {
        scores[i] = exp_2(scores[i] * scale - top[i % 2]);
        total[i % 2] += scores[i];
    }
    return as_rows(scores);
}

INLINE void add_values(float (&mean)[STEPS][4], const uint4 (&values)[STEPS], uint2 weights) {
    for (int s = 0; s < STEPS; ++s) product(mean[s], values[s], weights.x, weights.y);
}

// How many blocks' values are on their way at a time.
#define AHEAD (N * EVENTS < 4 ? N * EVENTS : 4)

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_FORWARD / TOGETHER) forward(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const Gates *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ selected, const int *__restrict__ table, u16 *__restrict__ out,
    float *__restrict__ lse, int events, float scale, int q_event, int q_head,
    int k_event, int k_head, int v_event, int v_head
) {
    const int lane = this_lane(), number = this_tile(), group = this_group();
    const Tile at(table, number);
    if (at.empty()) return;
    const int c = lane % 4;
    q = in_registers(row_at(q, at.start, q_event) + (group * R + lane / 4 % R) * q_head + 4 * c);
    k = in_registers(row_at(k, at.start, k_event) + group * k_head + 4 * c);
    v = in_registers(row_at(v, at.start, v_event) + group * v_head + 4 * c);
    const uint4 *home = in_registers(packed_block(packed, number - at.block, group, lane));
    const NearPattern pattern(lane / 4, c);
    int next = load_choice(selected, at, group, at.first(), lane);

#pragma unroll 1
    for (int u = 0; u < UNITS; ++u) {
        const int first = at.first() + u * EVENTS;
        if (first >= at.length) return;
        const Unit unit(lane, first, at.length);
        const ChosenBlocks chosen(next, lane);
        next = load_choice(selected, at, group, first + EVENTS, lane);
        uint2 queries[STEPS];
        for (int s = 0; s < STEPS; ++s)
            queries[s] = four(row_at(q, unit.event, q_event) + 16 * s, unit.inside);
        float bias[2];
        load_bias(bias, gates, unit, at, group, scale);

        float far_long[N][4];
        for (int j = 0; j < N; ++j) {
            clear(far_long[j]);
            for (int e = 0; e < EVENTS; ++e) {
                uint4 keys[STEPS];
                load_matrix(keys, chosen.place(home, j * EVENTS + e));
                multiply_own(far_long[j], keys, queries, unit.owns(e));
            }
        }
        // Values come while other scores are computed, the next ones while weights are multiplied.
        uint4 values[AHEAD][STEPS];
        for (int n = 0; n < AHEAD; ++n) load_matrix(values[n], chosen.place(home, n) + STEPS * 32);
        if (!chosen.complete())
            for (int j = 0; j < N; ++j) chosen.hide_unseen(far_long[j], j, unit);
        // Short-term scores: near blocks, among them the own one, and far powers of two.
        float near[NEAR_STEPS][4], far[FAR_TOTAL > 0 ? FAR_TOTAL : 1][4];
        float own_long[4];   // long-term scores with the own block
        const NearPattern seen = pattern.later(u * EVENTS);
        for (int step = 0; step < NEAR_STEPS; ++step) {
            start(near[step], bias);
            uint4 keys[STEPS];
            load_matrix(keys, block_at(home, near_block(at, step)));
            multiply(near[step], keys, queries);
            hide_unseen(near[step], own_long, seen, bias, at, 0, step, unit.g);
        }
        for (int step = 0; step < FAR_TOTAL; ++step) {
            for (int i = 0; i < 4; ++i) far[step][i] = -INFINITE;
            if (step && !far_step_needed(step, at.first(), at.length)) continue;
            const FarKeys keys(step, unit.g, first, at.length);
            uint4 rows[STEPS];
            load_far(rows, k, keys, k_event, 0);
            float scores[4];
            start(scores, bias);
            multiply(scores, rows, queries);
            for (int i = 0; i < 4; ++i)
                if (keys.held[i / 2] && (2 * unit.c + i % 2) / R == keys.event[i / 2])
                    far[step][i] = scores[i];
        }

        float top[SOFTMAXES][2];   // [long or short][column]
        for (int i = 0; i < 2; ++i) {
            // Columns behind the end see nothing and must not give NaN.
            float tops[SOFTMAXES];
            for (int path = 0; path < SOFTMAXES; ++path) tops[path] = -1e30f;
            if (!UNION) tops[0] = top_of(own_long, i, tops[0]);
            for (int j = 0; j < N; ++j) tops[0] = top_of(far_long[j], i, tops[0]);
            for (int step = 0; step < NEAR_STEPS; ++step)
                tops[OF_SHORT] = top_of(near[step], i, tops[OF_SHORT]);
            for (int step = 0; step < FAR_TOTAL; ++step)
                tops[OF_SHORT] = top_of(far[step], i, tops[OF_SHORT]);
            for (int path = 0; path < SOFTMAXES; ++path)
                top[path][i] = max_of_rows(tops[path]) * scale;
        }

        float mean[SOFTMAXES][STEPS][4], total[SOFTMAXES][2];
        for (int path = 0; path < SOFTMAXES; ++path) {
            total[path][0] = total[path][1] = 0.0f;
            for (int s = 0; s < STEPS; ++s) clear(mean[path][s]);
        }
        for (int j = 0; j < N; ++j) {
            const uint2 weights = weights_of(far_long[j], top[0], total[0], scale);
            for (int e = 0; e < EVENTS; ++e) {
                const int n = j * EVENTS + e;
                add_values(mean[0], values[n % AHEAD], zero_unless(unit.owns(e), weights));
                if (n + AHEAD < N * EVENTS)
                    load_matrix(values[n % AHEAD], chosen.place(home, n + AHEAD) + STEPS * 32);
            }
        }
        for (int step = 0; step < NEAR_STEPS; ++step) {
            uint4 near_values[STEPS];
            load_matrix(near_values, block_at(home, near_block(at, step)) + STEPS * 32);
            const uint2 weights = weights_of(near[step], top[OF_SHORT], total[OF_SHORT], scale);
            add_values(mean[OF_SHORT], near_values, weights);
            if (!UNION && step == OWN)
                add_values(mean[0], near_values, weights_of(own_long, top[0], total[0], scale));
        }
        for (int step = 0; step < FAR_TOTAL; ++step) {
            if (step && !far_step_needed(step, at.first(), at.length)) continue;
            const FarKeys keys(step, unit.g, first, at.length);
            uint4 rows[STEPS];
            load_far(rows, v, keys, v_event, 0);
            for (int s = 0; s < STEPS; ++s) rows[s] = turned(rows[s]);
            const uint2 weights = weights_of(far[step], top[OF_SHORT], total[OF_SHORT], scale);
            add_values(mean[OF_SHORT], rows, weights);
        }

        float gate[2][2], factor[SOFTMAXES][2];
        int places[2];
        places_of(places, unit, at, group);
        load_gates(gate, gates, places);
        for (int path = 0; path < SOFTMAXES; ++path)
            for (int i = 0; i < 2; ++i) {
                total[path][i] = sum_of_rows(total[path][i]);
                factor[path][i] = quotient(gate[path][i], total[path][i]);
            }
        if (unit.g == 0)
            for (int i = 0; i < 2; ++i)
                for (int path = 0; path < 2; ++path)
                    if (unit.events[i] < at.length)
                        // Of a union, that by which scores without the bias become weights.
                        lse[path * events * HEADS + places[i]] =
                            top[path * OF_SHORT][i] + log_2(total[path * OF_SHORT][i])
                            - (UNION && path ? bias[i] * scale : 0.0f);
        u16 *row = row_at(out, (at.start + unit.event) * HEADS + group * R + unit.head, D);
        for (int s = 0; s < STEPS; ++s) {
            float result[4];
            for (int i = 0; i < 4; ++i)
                result[i] = mean[0][s][i] * factor[0][i % 2]
                    + (UNION ? 0.0f : mean[OF_SHORT][s][i] * factor[OF_SHORT][i % 2]);
            store_columns(row, result, unit, s);
        }
    }
}
