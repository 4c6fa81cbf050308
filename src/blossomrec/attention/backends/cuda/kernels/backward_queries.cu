// Backward of the queries and gates: one warp is one block of queries and one group of heads.
//
// Of a softmax with weights w over values v the gradient of a score is gate * w * (slope - shift),
// with slope = grad . v and shift = sum(w * slope), which is also the gradient of the path's gate.
// That of the short-term path is found first. What its share leaves of grad . out is that of the
// long-term path, whose keys and values need to be fetched once then.
//
// A union has one softmax, whose shift is grad . out: all its keys and values are fetched once. The
// gradient of the bias is the sum of those of the scores it is added to, and as all scores' sum up
// to 0, minus the sum of the others. The mean of both suffers half as much by the rounding of out.
//
// LISTED: nothing is packed, and near blocks are fetched row by row. What chosen blocks give comes
// along the lists (ring_keys.cu) and is added afterwards (choices.cu). `grad_gates` are then sums
// [SOFTMAXES, T, H]: of a union, gradients of scores with the bias less those of others; else
// gradients of both gates, that of the long-term path without its chosen blocks.
#if LISTED
typedef float GateGradient;
#else
typedef Gates GateGradient;
#endif

// Scores to weights, given the lse of each column; adds up weight * slope.
INLINE void weigh_again(
    float (&scores)[4], const float (&slopes)[4], const float (&lse)[2], float (&shift)[2],
    float scale
) {
    for (int i = 0; i < 4; ++i) {
        scores[i] = exp_2(scores[i] * scale - lse[i % 2]);
        shift[i % 2] += scores[i] * slopes[i];
    }
}

// Gradients of scores in the place of weights: `lost` is gate * shift.
INLINE void steepen(
    float (&weights)[4], const float (&slopes)[4], const float (&gate)[2], const float (&lost)[2]
) {
    for (int i = 0; i < 4; ++i) weights[i] *= gate[i % 2] * slopes[i] - lost[i % 2];
}

INLINE void add_keys(float (&sum)[STEPS][4], const uint4 (&keys)[STEPS], uint2 slopes) {
    for (int s = 0; s < STEPS; ++s) product(sum[s], turned(keys[s]), slopes.x, slopes.y);
}

// Keys or values of a near block.
INLINE void load_near(
    uint4 (&rows)[STEPS], const uint4 *packed, const u16 *x, int block, int stride, const Tile &at,
    const Unit &unit
) {
#if LISTED
    // Behind the end, where nothing is seen, stands the last row.
    const int row = block * SIZE + unit.g, last = at.length - 1;
    const u16 *upper = row_at(x, min(row, last), stride) + 4 * unit.c;
    const u16 *lower = row_at(x, min(row + 8, last), stride) + 4 * unit.c;
    for (int s = 0; s < STEPS; ++s)
        rows[s] = rows_as_a(four(upper + 16 * s, true), four(lower + 16 * s, true));
#else
    load_matrix(rows, packed);
#endif
}

// Sum of products of the numbers of two rows, of the columns 2c and 2c + 1.
INLINE void row_products(
    float (&sums)[2], const uint2 (&x)[STEPS], const uint2 (&y)[STEPS], int c
) {
    float sum = 0.0f;
    for (int s = 0; s < STEPS; ++s)
        sum += low(x[s].x) * low(y[s].x) + high(x[s].x) * high(y[s].x)
            + low(x[s].y) * low(y[s].y) + high(x[s].y) * high(y[s].y);
    sum += across(sum, 1);
    sum += across(sum, 2);
    for (int i = 0; i < 2; ++i) sums[i] = from_lane(sum, 4 * (2 * c + i));
}

#if !LISTED
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
#endif

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_QUERIES / TOGETHER) backward_queries(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const Gates *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ selected, const int *__restrict__ table, const u16 *__restrict__ out,
    const float *__restrict__ lse, const u16 *__restrict__ grad, u16 *__restrict__ grad_q,
    GateGradient *__restrict__ grad_gates, float *__restrict__ shifts, List *__restrict__ lists,
    int tiles, int events, float scale, int q_event, int q_head, int k_event, int k_head,
    int v_event, int v_head
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
#if !LISTED
        const ChosenBlocks chosen(load_choice(selected, at, group, first, lane), lane);
#endif
        uint2 queries[STEPS], grads[STEPS], outs[STEPS];
        load_columns(queries, row_at(q, at.start + unit.event, q_event)
            + (group * R + unit.head) * q_head, unit);
        const int row = (at.start + unit.event) * HEADS + group * R + unit.head;
        load_columns(grads, row_at(grad, row, D), unit);
        load_columns(outs, row_at(out, row, D), unit);
        float gate[2][2], logs[SOFTMAXES][2], shift[SOFTMAXES][2];   // [long or short][column]
        int places[2];
        places_of(places, unit, at, group);
        load_gates(gate, gates, places);
        for (int path = 0; path < SOFTMAXES; ++path) {
            load_two(logs[path], lse + path * plane, places);
            for (int i = 0; i < 2; ++i) shift[path][i] = 0.0f;
        }
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
            const int block = near_block(at, step);
            const uint4 *place = block_at(home, block);
            uint4 keys[STEPS], values[STEPS];
            load_near(keys, place, k, block, k_event, at, unit);
            load_near(values, place + STEPS * 32, v, block, v_event, at, unit);
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
            const int block = near_block(at, step);
            load_near(keys, block_at(home, block), k, block, k_event, at, unit);
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
#if !LISTED
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
#endif
        for (int i = 0; i < 2; ++i) {
            // Summed up over the keys, this shift is free of the rounding of the output.
            if (!UNION) shift[0][i] = sum_of_rows(shift[0][i]);
            if (UNION) bias_slopes[i] = (LISTED ? 1.0f : 0.5f) * sum_of_rows(bias_slopes[i]);
        }
        for (int s = 0; s < STEPS; ++s) {
            for (int i = 0; i < 4; ++i) sum[s][i] *= scale * LN_2;
            store_columns(row_at(grad_q, row, D), sum[s], unit, s);
        }
#if LISTED
        for (int i = 0; i < 2; ++i) {
            if (unit.g || unit.events[i] >= at.length) continue;
            grad_gates[places[i]] = UNION ? bias_slopes[i] : shift[0][i];
            if (!UNION)
                grad_gates[plane + places[i]] = shifts[plane + places[i]] = shift[OF_SHORT][i];
            // The sum over all keys is not there yet. What grad . out leaves is gate * shift, and tells
            // nothing of the shift where the gate is too small to divide by.
            const bool closed = !UNION && fabsf(gate[0][i]) < 1e-30f;
            shifts[places[i]] = closed ? 0.0f : quotient(lost[0][i], gate[0][i]);
        }
#else
        if (unit.g == 0) {
            if (UNION) store_two((u16 *)grad_gates, bias_slopes, places, unit, at);
            for (int i = 0; i < 2; ++i) {
                if (unit.events[i] >= at.length) continue;
                if (!UNION) grad_gates[places[i]] = pair(shift[0][i], shift[OF_SHORT][i]);
                for (int path = 0; path < SOFTMAXES; ++path)
                    shifts[path * plane + places[i]] = UNION ? lost[0][i] : shift[path][i];
            }
        }
#endif
        // The inverse list that each choice belongs to, for the kernel of the keys.
        if (lane < EVENTS * N && first + lane / N < at.length) {
            const int place = ((at.start + first + lane / N) * G + group) * N + lane % N;
            const int block = selected[place];
            lists[place] = block < 0 ? tiles * G : (number - at.block + block) * G + group;
        }
    }
}
