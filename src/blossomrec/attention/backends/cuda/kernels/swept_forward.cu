// Forward that sweeps over the chosen blocks: one warp computes one block of queries and one group of
// heads, HELD units at a time. The long-term path comes first, for all of these at once, then the
// short-term path of one after the other. Softmaxes are summed up online.

// Weights are relative to a top that the highest score exceeds by at most this power of two, so that
// few keys make the sums be rescaled.
#define LAG 8.0f

// The softmax of one path for the columns 2c and 2c + 1. `total` covers this lane's rows alone.
struct Softmax {
    float top[2], total[2], mean[STEPS][4];

    // Begins with the top of the first scores, which every event has.
    INLINE void begin(const float (&scores)[4], float scale) {
        for (int i = 0; i < 2; ++i) {
            // Columns behind the end see nothing and must not give NaN.
            top[i] = max_of_rows(fmaxf(-1e30f, fmaxf(scores[i], scores[i + 2]))) * scale;
            total[i] = 0.0f;
        }
        for (int s = 0; s < STEPS; ++s) clear(mean[s]);
    }
    // `begun`: whether these are the first scores.
    INLINE void add(
        float (&scores)[4], const uint4 (&values)[STEPS], float scale, bool begun = false
    ) {
        for (int i = 0; i < 4; ++i) scores[i] = scores[i] * scale - top[i % 2];
        const float above = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
        if (!begun && any_lane(above > LAG)) rise(scores);
        for (int i = 0; i < 4; ++i) {
            scores[i] = exp_2(scores[i]);
            total[i % 2] += scores[i];
        }
        const uint2 weights = as_rows(scores);
        for (int s = 0; s < STEPS; ++s) product(mean[s], values[s], weights.x, weights.y);
    }
    // Raises tops that are too low. Other columns stay the same to the bit, so that no event depends
    // on another.
    INLINE void rise(float (&scores)[4]) {
        for (int i = 0; i < 2; ++i) {
            const float above = max_of_rows(fmaxf(scores[i], scores[i + 2]));
            const float more = above > LAG ? above : 0.0f;
            const float factor = exp_2(-more);
            top[i] += more, total[i] *= factor;
            scores[i] -= more, scores[i + 2] -= more;
            for (int s = 0; s < STEPS; ++s) mean[s][i] *= factor, mean[s][i + 2] *= factor;
        }
    }
    // Makes the mean the path's share of the result.
    INLINE void finish(const float (&gate)[2]) {
        for (int i = 0; i < 2; ++i) {
            total[i] = sum_of_rows(total[i]);
            const float factor = quotient(gate[i], total[i]);
            for (int s = 0; s < STEPS; ++s) mean[s][i] *= factor, mean[s][i + 2] *= factor;
        }
    }
    INLINE float lse(int i) const { return top[i] + log_2(total[i]); }
};

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_FORWARD / TOGETHER) swept_forward(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const Gates *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ selected, const int *__restrict__ table, u16 *__restrict__ out,
    float *__restrict__ lse, int events, float scale, int q_event, int q_head,
    int k_event, int k_head, int v_event, int v_head
) {
    const int lane = this_lane(), number = this_tile(), group = this_group();
    const Tile at(table, number);
    if (at.empty()) return;
    q += group * R * q_head;
    const uint4 *home = packed_block(packed, number - at.block, group, lane);

#pragma unroll 1
    for (int part = 0; part < UNITS; part += HELD) {
        const int first = at.first() + part * EVENTS;
        if (first >= at.length) return;
        const auto unit_of = [&](int u) { return Unit(lane, first + u * EVENTS, at.length); };
        const auto load_queries = [&](uint2 (&queries)[STEPS], const Unit &unit) {
            load_row(
                queries, row_at(q, at.start + unit.event, q_event) + unit.head * q_head, unit.c,
                unit.inside);
        };
        const auto load_gate = [&](float (&gate)[2][2], const Unit &unit) {
            int places[2];
            places_of(places, unit, at, group);
            load_gates(gate, gates, places);
        };
        const auto finish = [&](
            Softmax &path, int number, const Unit &unit, const float (&gate)[2],
            const float (&bias)[2]
        ) {
            path.finish(gate);
            if (unit.g > 0) return;
            int places[2];
            places_of(places, unit, at, group);
            for (int i = 0; i < 2; ++i)
                if (unit.events[i] < at.length) {
                    lse[number * events * HEADS + places[i]] = path.lse(i);
                    // The second of a union turns scores without the bias into weights.
                    if (UNION) lse[events * HEADS + places[i]] = path.lse(i) - bias[i] * scale;
                }
        };
        // Of the long-term path, or of both.
        Softmax paths[HELD];
        {
            const Sweep sweep(selected, at, group, first, lane);
            uint2 queries[HELD][STEPS];
            uint4 keys[STEPS], values[STEPS];
            // The own block comes first, because every event sees a key there.
            const uint4 *here = row_at(home, at.block, BLOCK_STRIDE);
            load_matrix(keys, here), load_matrix(values, here + STEPS * 32);
            int block = sweep.after(-1);
#pragma unroll
            for (int u = 0; u < HELD; ++u) load_queries(queries[u], unit_of(u));
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                float bias[2], seen[4], own[4];
                load_bias(bias, gates, unit_of(u), at, group, scale);
                start(seen, bias);
                multiply_by_halves(seen, keys, queries[u]);
                hide_near(seen, own, pattern_of(part + u, lane), bias, at, OWN, lane / 4);
                float (&scores)[4] = UNION ? seen : own;
                paths[u].begin(scores, scale);
                paths[u].add(scores, values, scale, true);
            }
            if (block != NO_BLOCK) {
                const uint4 *place = row_at(home, block, BLOCK_STRIDE);
                load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
            }
            // What comes next is fetched as soon as there is room.
#pragma unroll 1
            while (block != NO_BLOCK) {
                const int following = sweep.after(block);
                const uint4 *place = row_at(home, following, BLOCK_STRIDE);
                float scores[HELD][4];
                u32 lanes[HELD];
#pragma unroll
                for (int u = 0; u < HELD; ++u) {
                    lanes[u] = sweep.lanes(u, block);
                    clear(scores[u]);
                    if (HELD == 1 || lanes[u]) multiply_by_halves(scores[u], keys, queries[u]);
                }
                if (following != NO_BLOCK) load_matrix(keys, place);
#pragma unroll
                for (int u = 0; u < HELD; ++u) {
                    if (HELD > 1 && !lanes[u]) continue;
                    hide_unless_chosen(scores[u], lanes[u], block, unit_of(u));
                    paths[u].add(scores[u], values, scale);
                }
                if (following != NO_BLOCK) load_matrix(values, place + STEPS * 32);
                block = following;
            }
        }
        if (!UNION)
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                float gate[2][2];
                load_gate(gate, unit_of(u));
                finish(paths[u], 0, unit_of(u), gate[0], {0.0f, 0.0f});
            }
        // The short-term path, one unit after the other.
#pragma unroll 1
        for (int u = 0; u < HELD; ++u) {
            const Unit unit = unit_of(u);
            const NearPattern pattern = pattern_of(part + u, lane);
            uint2 queries[STEPS];
            float bias[2], gate[2][2];
            load_queries(queries, unit);
            load_bias(bias, gates, unit, at, group, scale);
            load_gate(gate, unit);
#if UNION
            Softmax &path = paths[0];
#else
            Softmax path;
#endif
            // The own block first; a union has been there.
#pragma unroll
            for (int n = UNION; n < NEAR_STEPS; ++n) {
                const int step = n == 0 ? OWN : n <= OWN ? n - 1 : n;
                const uint4 *place = block_at(home, anew(near_block(at, step)));
                uint4 keys[STEPS], values[STEPS];
                load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
                float scores[4], own[4];
                start(scores, bias);
                multiply_by_halves(scores, keys, queries);
                hide_near(scores, own, pattern, bias, at, step, lane / 4);
                if (step == OWN) path.begin(scores, scale);
                path.add(scores, values, scale, step == OWN);
            }
#pragma unroll 1
            for (int step = 0; step < FAR_TOTAL; ++step) {
                if (!far_step_needed(step, at.first(), at.length)) continue;
                FarRows far;
                far.load(
                    step, row_at(k, at.start, k_event) + group * k_head,
                    row_at(v, at.start, v_event) + group * v_head, k_event, v_event,
                    first + u * EVENTS, at, lane);
                float scores[4];
                start(scores, bias);
                multiply_by_halves(scores, far.keys, queries);
                far.hide_unmet(scores);
                turn(far.values);
                path.add(scores, far.values, scale);
            }
            finish(path, OF_SHORT, unit, gate[OF_SHORT], bias);
            u16 *row = row_at(out, (at.start + unit.event) * HEADS + group * R + unit.head, D);
            uint2 numbers[STEPS];
            for (int s = 0; s < STEPS; ++s) {
                if (!UNION)
                    for (int i = 0; i < 4; ++i) path.mean[s][i] += paths[0].mean[s][i];
                numbers[s] = as_rows(path.mean[s]);
            }
            if (unit.inside) store_row(row, numbers, unit.c);
            // Registers have no numbers that a loop could count: the next unit becomes the first.
#pragma unroll
            for (int other = 1; other < HELD; ++other) paths[other - 1] = paths[other];
        }
    }
}
