// Forward that sweeps over the chosen blocks: one warp computes one block of queries and one group of
// heads, and holds HELD units at a time. Softmaxes are summed up online.

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
        if (!begun && lanes_with(above > LAG)) rise(scores);
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
};

// The own block comes first, because every event sees a key there; the other near blocks follow.
constexpr INLINE int near_step(int n) { return n == 0 ? OWN : n <= OWN ? n - 1 : n; }

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
    k = row_at(k, at.start, k_event) + group * k_head;
    v = row_at(v, at.start, v_event) + group * v_head;
    const uint4 *home = packed_block(packed, number - at.block, group, lane);
    const NearPattern pattern(lane / 4, lane % 4);

#pragma unroll 1
    for (int part = 0; part < UNITS; part += HELD) {
        const int first = at.first() + part * EVENTS;
        if (first >= at.length) return;
        const Sweep sweep(selected, at, group, first, lane);
        uint2 queries[HELD][STEPS];
        float bias[HELD][2];
#pragma unroll
        for (int u = 0; u < HELD; ++u) {
            const Unit unit(lane, first + u * EVENTS, at.length);
            load_columns(queries[u], row_at(q, at.start + unit.event, q_event)
                + (group * R + unit.head) * q_head, unit);
            load_bias(bias[u], gates, unit, at, group, scale);
        }
        Softmax paths[HELD][SOFTMAXES];   // [long or short]
#pragma unroll
        for (int n = 0; n < NEAR_STEPS; ++n) {
            const int step = near_step(n);
            const uint4 *place = block_at(home, near_block(at, step));
            uint4 keys[STEPS], values[STEPS];
            load_matrix(keys, place), load_matrix(values, place + STEPS * 32);
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                float scores[4], own[4];
                start(scores, bias[u]);
                multiply_by_halves(scores, keys, queries[u]);
                hide_unseen(
                    scores, own, pattern, bias[u], at, (part + u) * EVENTS, step, lane / 4);
                if (step == OWN) {
                    paths[u][OF_SHORT].begin(scores, scale);
                    if (!UNION) {
                        paths[u][0].begin(own, scale);
                        paths[u][0].add(own, values, scale, true);
                    }
                }
                paths[u][OF_SHORT].add(scores, values, scale, step == OWN);
            }
        }
        FarRows next;
        const auto load_next = [&](int step, int u) {
            next.load(step, k, v, k_event, v_event, first + u * EVENTS, at, lane);
        };
        // Two softmaxes of heads of 64 leave no registers to fetch ahead.
        constexpr bool AHEAD = UNION || D < 64;
        if (AHEAD) load_next(0, 0);
#pragma unroll 1
        for (int step = 0; step < FAR_TOTAL; ++step) {
            const bool needed = far_step_needed(step, at.first(), at.length);
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                if (!needed && (!AHEAD || u < HELD - 1)) continue;
                if (!AHEAD) load_next(step, u);
                FarRows far = next;
                if (AHEAD) load_next(step + (u + 1) / HELD, (u + 1) % HELD);
                if (!needed) continue;
                float scores[4];
                start(scores, bias[u]);
                multiply_by_halves(scores, far.keys, queries[u]);
                far.hide_unmet(scores);
                turn(far.values);
                paths[u][OF_SHORT].add(scores, far.values, scale);
            }
        }
        int block = sweep.after(-1);
        uint4 keys[STEPS];
        if (block != NO_BLOCK) load_matrix(keys, block_at(home, block));
#pragma unroll 1
        while (block != NO_BLOCK) {
            uint4 values[STEPS];
            load_matrix(values, block_at(home, block) + STEPS * 32);
            const int following = sweep.after(block);
            float scores[HELD][4];
            u32 lanes[HELD];
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                lanes[u] = sweep.lanes(u, block);
                clear(scores[u]);
                if (lanes[u]) multiply_by_halves(scores[u], keys, queries[u]);
            }
            if (following != NO_BLOCK) load_matrix(keys, block_at(home, following));
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                if (!lanes[u]) continue;
                const Unit unit(lane, first + u * EVENTS, at.length);
                hide_unless_chosen(scores[u], lanes[u], block, unit);
                paths[u][0].add(scores[u], values, scale);
            }
            block = following;
        }

#pragma unroll
        for (int u = 0; u < HELD; ++u) {
            const Unit unit(lane, first + u * EVENTS, at.length);
            float gate[2][2], factor[SOFTMAXES][2];
            int places[2];
            places_of(places, unit, at, group);
            load_gates(gate, gates, places);
            for (int path = 0; path < SOFTMAXES; ++path)
                for (int i = 0; i < 2; ++i) {
                    float &total = paths[u][path].total[i];
                    total = sum_of_rows(total);
                    factor[path][i] = quotient(gate[path][i], total);
                }
            if (unit.g == 0)
                for (int i = 0; i < 2; ++i)
                    for (int path = 0; path < 2; ++path) {
                        if (unit.events[i] >= at.length) continue;
                        const Softmax &of = paths[u][path * OF_SHORT];
                        // The second lse of a union turns scores without the bias into weights.
                        lse[path * events * HEADS + places[i]] = of.top[i] + log_2(of.total[i])
                            - (UNION && path ? bias[u][i] * scale : 0.0f);
                    }
            u16 *row = row_at(out, (at.start + unit.event) * HEADS + group * R + unit.head, D);
            for (int s = 0; s < STEPS; ++s) {
                float result[4];
                for (int i = 0; i < 4; ++i)
                    result[i] = paths[u][0].mean[s][i] * factor[0][i % 2]
                        + (UNION ? 0.0f
                            : paths[u][OF_SHORT].mean[s][i] * factor[OF_SHORT][i % 2]);
                store_columns(row, result, unit, s);
            }
        }
    }
}
