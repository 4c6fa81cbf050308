// Backward of the queries and gates of wide heads, see queries.cuh, without chosen blocks: what those
// give comes along the lists (ring_keys.cu) and is added afterwards (choices.cu). One warp is one
// block of queries and one group of heads, and goes through its units.
//
// Near keys stay in shared memory. Far keys of a unit, and its own rows, are fetched while the warp
// works on the unit before. SLOTS, given when compiled: steps of far keys that there is room for; those
// beyond are fetched when they are needed.

#define FAR_SLOTS (SLOTS < FAR_TOTAL ? SLOTS : FAR_TOTAL)
#define QUERY_ROWS (ROWS_AT_ONCE > 8 ? ROWS_AT_ONCE : 8)   // of a unit; those beyond are zeros
#define QUERIES_BYTES (QUERY_ROWS * ROW_BYTES)

struct alignas(128) KeyRows {
    uint4 keys[16 * PIECES], values[16 * PIECES];
};

struct alignas(128) QueryRows {
    uint4 q[QUERY_ROWS * PIECES], grad[QUERY_ROWS * PIECES], out[QUERY_ROWS * PIECES];
};

// Keys and values of the history, at the piece that this lane fetches.
struct Source {
    const u16 *k, *v;
    int k_event, v_event;

    // An event before the first one stands for zeros.
    template <int Offset>
    INLINE void fetch(Shared to, int event) const {
        copy_16<Offset>(to, row_at(k, event, k_event), event >= 0);
        copy_16<Offset + ROWS_BYTES>(to, row_at(v, event, v_event), event >= 0);
    }
};

struct CopyNear {
    const Source &from;
    int first, length;

    template <int Offset>
    INLINE void fetch(Shared to, int row) const {
        from.fetch<Offset>(to, first + row < length ? first + row : -1);
    }
};

// Position of the far key in a row of a step, -1 for none, see FarKeys.
INLINE int far_key(int step, int row, int first, int length) {
    const int exponent = FIRST_FAR + step % FAR_STEPS * POWERS + row % POWERS;
    const int query = first + row / POWERS, distance = exponent < KNOWN ? POWER(exponent) : length;
    const int key = step < FAR_STEPS ? query - distance : query + distance;
    return query < length && key < length ? max(key, -1) : -1;
}

struct CopyFar {
    const Source &from;
    int step, first, length;   // first: event of the unit

    template <int Offset>
    INLINE void fetch(Shared to, int row) const {
        from.fetch<Offset>(to, far_key(step, row, first, length));
    }
};

// Rows of a unit, from pointers at the group's first head and the piece that this lane fetches.
struct CopyRows {
    const u16 *q, *grad, *out;
    int q_event, q_head, first, length;   // first: event of the unit

    template <int Offset>
    INLINE void fetch(Shared to, int row) const {
        const int event = first + row / R, head = row % R;
        const bool held = row < 8 && event < length;
        copy_16<Offset>(to, row_at(q, event, q_event) + head * q_head, held);
        copy_16<Offset + QUERIES_BYTES>(to, row_at(grad, event, HEADS * D) + head * D, held);
        copy_16<Offset + 2 * QUERIES_BYTES>(to, row_at(out, event, HEADS * D) + head * D, held);
    }
};

// Rows of a unit as a factor B.
template <int Offset>
INLINE void read_columns(uint2 (&b)[STEPS], Shared rows) {
    for (int s = 0; s < STEPS; s += 2) {
        const uint4 x = matrices<Offset>(rows ^ 32 * s);
        b[s] = make_uint2(x.x, x.y);
        if (s + 1 < STEPS) b[s + 1] = make_uint2(x.z, x.w);
    }
}

// Adds the product of sixteen rows and columns.
template <int Offset>
INLINE void multiply(float (&scores)[4], Shared rows, const uint2 (&b)[STEPS]) {
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const uint4 x = matrices<Offset>(rows ^ 32 * s);
        product(scores, make_uint4(x.x, x.z, x.y, x.w), b[s].x, b[s].y);
    }
}

// Adds keys times the gradients of their scores.
INLINE void add_keys(float (&sum)[STEPS][4], Shared keys, const float (&steep)[4]) {
    const uint2 slopes = as_rows(steep);
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
        product(sum[s], turned_matrices<0>(keys ^ 32 * s), slopes.x, slopes.y);
}

// grad_gates: sums [SOFTMAXES, T, H]: of a union, gradients of scores with the bias less those of
// others; else gradients of both gates, that of the long-term path without its chosen blocks.
// records [2, T, H]: lse, shift and gate of the long-term and of the short-term path.
extern "C" __global__ void __launch_bounds__(32, WARPS_QUERIES) near_queries(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const Gates *__restrict__ gates, const int *__restrict__ table, const u16 *__restrict__ out,
    const float *__restrict__ lse, const u16 *__restrict__ grad, u16 *__restrict__ grad_q,
    float *__restrict__ grad_gates, float4 *__restrict__ records, int events, float scale,
    int q_event, int q_head, int k_event, int k_head, int v_event, int v_head
) {
    __shared__ KeyRows near_rows[NEAR_STEPS], far_rows[FAR_SLOTS];
    __shared__ QueryRows own_rows;
    const int lane = this_lane(), number = this_tile(), group = this_group();
    const Tile at(table, number);
    if (at.empty()) return;
    const int plane = events * HEADS, piece = 8 * (lane % PIECES);
    const int first_row = at.start * HEADS + group * R;
    const Source from{
        row_at(k, at.start, k_event) + group * k_head + piece,
        row_at(v, at.start, v_event) + group * v_head + piece, k_event, v_event};
    const NearPattern pattern(lane / 4, lane % 4);
    const u32 to = bytes_to(lane / PIECES, lane % PIECES), read = bytes_of_lane(lane);
    const Shared near_keys = shared_address(near_rows), far_keys = shared_address(far_rows);
    const Shared own = shared_address(&own_rows);
    const auto fetch_own = [&](int first) {
        const CopyRows copy{
            row_at(q, at.start, q_event) + group * R * q_head + piece,
            row_at(grad, first_row, D) + piece, row_at(out, first_row, D) + piece, q_event, q_head,
            first, at.length};
        fetch_rows<0, QUERY_ROWS>(own + to, lane, copy);
    };
    const auto far_slot = [&](int step) {
        return far_keys + step % FAR_SLOTS * (int)sizeof(KeyRows);
    };
    const auto fetch_far = [&](int step, int first) {
        fetch_rows<0>(far_slot(step) + to, lane, CopyFar{from, step, first, at.length});
    };
    const auto needed = [&](int step) { return far_step_needed(step, at.first(), at.length); };
    const auto fetch_first_far = [&](int first) {
#pragma unroll
        for (int step = 0; step < FAR_SLOTS; ++step)
            if (needed(step)) fetch_far(step, first);
    };
    const auto fetch_now = [&](int step, int first) {
        fetch_far(step, first);
        commit_copies();
        wait_for_copies<0>();
    };

#pragma unroll
    for (int step = 0; step < NEAR_STEPS; ++step)
        fetch_rows<0>(
            near_keys + step * (int)sizeof(KeyRows) + to, lane,
            CopyNear{from, near_block(at, step) * SIZE, at.length});
    fetch_own(at.first());
    commit_copies();
    fetch_first_far(at.first());
    commit_copies();
#pragma unroll 1
    for (int u = 0; u < UNITS; ++u) {
        const int first = at.first() + u * EVENTS;
        if (first >= at.length) return;
        const Unit unit(lane, first, at.length);
        float gate[2][2], logs[SOFTMAXES][2], shift[SOFTMAXES][2];   // [long or short][column]
        int places[2];
        load_paths(gate, logs, shift, places, gates, lse, plane, unit, at, group);
        float bias[2], bias_slopes[2] = {0.0f, 0.0f}, sum[STEPS][4];
        load_bias(bias, gates, unit, at, group, scale);
        for (int s = 0; s < STEPS; ++s) clear(sum[s]);
        // The copies of far keys were begun last.
        wait_for_copies<1>();
        uint2 queries[STEPS], grads[STEPS], outs[STEPS];
        const Shared columns = own + bytes_to(lane % 8, lane / 8 % PIECES);
        read_columns<0>(queries, columns), read_columns<QUERIES_BYTES>(grads, columns);
        read_columns<2 * QUERIES_BYTES>(outs, columns);
        float lost[2][2];   // gate * shift, [long or short][column]
        row_products(lost[0], outs, grads, unit.c);
        if (u < UNITS - 1) fetch_own(first + EVENTS);
        commit_copies();

        float near[NEAR_STEPS][4], near_slopes[NEAR_STEPS][4], own_long[4];
#pragma unroll
        for (int step = 0; step < NEAR_STEPS; ++step) {
            start(near[step], bias), clear(near_slopes[step]);
            const Shared rows = near_keys + step * (int)sizeof(KeyRows) + read;
            multiply<0>(near[step], rows, queries);
            multiply<ROWS_BYTES>(near_slopes[step], rows, grads);
            hide_unseen(near[step], own_long, pattern, bias, at, u * EVENTS, step, unit.g);
            weigh_again(near[step], near_slopes[step], logs[OF_SHORT], shift[OF_SHORT], scale);
            if (!UNION) continue;
            steepen(near[step], near_slopes[step], gate[0], lost[0]);
            for (int i = 0; i < 4; ++i) {
                const bool raised = step != OWN || pattern.sees(i % 2, u * EVENTS, 0, i / 2);
                bias_slopes[i % 2] += raised ? near[step][i] : -near[step][i];
            }
            add_keys(sum, rows, near[step]);
        }
        float far[FAR_TOTAL][4], slopes[FAR_TOTAL][4];
        wait_for_copies<0>();
#pragma unroll
        for (int step = 0; step < FAR_TOTAL; ++step) {
            for (int i = 0; i < 4; ++i) far[step][i] = -INFINITE;
            clear(slopes[step]);
            if (!needed(step)) continue;
            if (step >= FAR_SLOTS) fetch_now(step, first);
            const Shared rows = far_slot(step) + read;
            float scores[4];
            start(scores, bias);
            multiply<0>(scores, rows, queries);
            multiply<ROWS_BYTES>(slopes[step], rows, grads);
            for (int i = 0; i < 4; ++i) {
                const int row = unit.g + i / 2 * 8;
                if (far_key(step, row, first, at.length) >= 0
                    && (2 * unit.c + i % 2) / R == row / POWERS)
                    far[step][i] = scores[i];
            }
            weigh_again(far[step], slopes[step], logs[OF_SHORT], shift[OF_SHORT], scale);
            if (!UNION) continue;
            steepen(far[step], slopes[step], gate[0], lost[0]);
            for (int i = 0; i < 4; ++i) bias_slopes[i % 2] += far[step][i];
            add_keys(sum, rows, far[step]);
        }
        if (!UNION)
            for (int i = 0; i < 2; ++i) {
                shift[OF_SHORT][i] = sum_of_rows(shift[OF_SHORT][i]);
                lost[1][i] = gate[1][i] * shift[OF_SHORT][i];
                lost[0][i] -= lost[1][i];
            }
        // From the last step to the first, whose keys may have made room for it.
#pragma unroll
        for (int step = FAR_TOTAL - 1; step >= 0 && !UNION; --step) {
            if (!needed(step)) continue;
            bool replaced = false;
            for (int later = step + FAR_SLOTS; later < FAR_TOTAL; later += FAR_SLOTS)
                replaced |= needed(later);
            if (replaced) fetch_now(step, first);
            steepen(far[step], slopes[step], gate[1], lost[1]);
            add_keys(sum, far_slot(step) + read, far[step]);
        }
        if (u < UNITS - 1) fetch_first_far(first + EVENTS);
        commit_copies();
#pragma unroll
        for (int step = 0; step < NEAR_STEPS && !UNION; ++step) {
            steepen(near[step], near_slopes[step], gate[1], lost[1]);
            if (step == OWN) {
                weigh_again(own_long, near_slopes[step], logs[0], shift[0], scale);
                steepen(own_long, near_slopes[step], gate[0], lost[0]);
                for (int i = 0; i < 4; ++i) near[step][i] += own_long[i];
            }
            add_keys(sum, near_keys + step * (int)sizeof(KeyRows) + read, near[step]);
        }
        u16 *row = row_at(grad_q, first_row + unit.event * HEADS + unit.head, D);
        for (int s = 0; s < STEPS; ++s) {
            for (int i = 0; i < 4; ++i) sum[s][i] *= scale * LN_2;
            // add_choices puts numbers in order.
            store_columns(row, sum[s], unit, s);
        }
        for (int i = 0; i < 2; ++i) {
            // Summed up over the keys, this shift is free of the rounding of the output.
            if (UNION) bias_slopes[i] = sum_of_rows(bias_slopes[i]);
            else shift[0][i] = sum_of_rows(shift[0][i]);
        }
        for (int i = 0; i < 2; ++i) {
            if (unit.g || unit.events[i] >= at.length) continue;
            const int place = places[i];
            grad_gates[place] = UNION ? bias_slopes[i] : shift[0][i];
            if (!UNION) grad_gates[plane + place] = shift[OF_SHORT][i];
            // The sum over all keys is not there yet. What grad . out leaves is gate * shift, and
            // tells nothing of the shift where the gate is too small to divide by.
            const bool closed = !UNION && fabsf(gate[0][i]) < 1e-30f;
            const float of_long = closed ? 0.0f : quotient(lost[0][i], gate[0][i]);
            const float of_short = UNION ? of_long : shift[OF_SHORT][i];
            const float log_short = UNION ? lse[plane + place] : logs[OF_SHORT][i];
            records[place] = make_float4(logs[0][i], of_long, gate[0][i], 0.0f);
            records[plane + place] = make_float4(log_short, of_short, gate[1][i], 0.0f);
        }
    }
}
