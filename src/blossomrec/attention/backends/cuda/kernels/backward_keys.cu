// Backward of the keys and values: one warp is one block of keys and one group, or a part of a
// long inverse list. Queries come in chunks of 16 rows (event, head), two columns C side by side,
// which are at once the factor A of the products that follow.

// What the queries of a group have for one lane: rows are those of packed events.
struct Queries {
    const u16 *q, *grad;              // of the head of column g, numbers 4c to 4c + 3
    const u32 *gates;                 // of the head of column 2c; both paths in one word, no bias
    const float *lse, *shifts;
    int q_event, plane;               // plane: from the long-term to the short-term path

    INLINE Queries(
        const u16 *q, const u16 *grad, const u32 *gates, const float *lse,
        const float *shifts, int q_event, int q_head, int plane, int group, int lane
    ) : q_event(q_event), plane(plane) {
        const int g = lane / 4, c = lane % 4, row = group * R + g % R, column = group * R + 2 * c % R;
        this->q = q + row * q_head + 4 * c;
        this->grad = grad + row * D + 4 * c;
        this->gates = gates + column;
        this->lse = lse + column, this->shifts = shifts + column;
    }
};

// One path's numbers of the columns 2c and 2c + 1.
struct Path {
    float gate[2], lse[2], shift[2];

    // Without weight are the columns that are not held.
    template <int SHORT>
    INLINE void load(const Queries &from, const int (&event)[2], const bool (&held)[2]) {
        int place[2];
        for (int n = 0; n < 2; ++n) place[n] = event[n] * HEADS;
        u32 both[2];
        if (!UNION) load_two(both, from.gates, place);
        load_two(lse, from.lse + SHORT * from.plane, place);
        load_two(shift, from.shifts + SHORT * OF_SHORT * from.plane, place);
        for (int n = 0; n < 2; ++n) {
            gate[n] = UNION ? 1.0f : SHORT ? high(both[n]) : low(both[n]);
            if (!held[n]) lse[n] = INFINITE;
        }
    }
    // Weight times gate and the gradient of a score, of a query that is seen.
    INLINE void weigh(float &weight, float &steep, float score, float slope, int n, bool seen) const {
        weight = gate[n] * exp_2(seen ? score - lse[n] : -INFINITE);
        steep = weight * (slope - shift[n]);
    }
};

// Eight rows, of which g is this lane's: queries and the output's gradient.
struct Rows {
    uint2 q[STEPS], grad[STEPS];

    INLINE void load(const Queries &from, int event, bool held) {
        const u16 *row = row_at(from.q, event, from.q_event);
        const u16 *grads = row_at(from.grad, event, HEADS * D);
        for (int s = 0; s < STEPS; ++s) {
            q[s] = four(row + 16 * s, held);
            grad[s] = four(grads + 16 * s, held);
        }
    }
};

struct Block {
    uint4 k[STEPS], v[STEPS];

    INLINE Block(const uint4 *packed, int tile, int group, int lane) {
        const uint4 *place = packed_block(packed, tile, group, lane);
        load_matrix(k, place), load_matrix(v, place + STEPS * 32);
    }
    // Scores as exponents of two, and slopes: of the columns' queries with the rows' keys.
    INLINE void score(
        float (&scores)[4], float (&slopes)[4], const Rows &rows, float scale
    ) const {
        clear(scores), clear(slopes);
        multiply(scores, k, rows.q), multiply(slopes, v, rows.grad);
        for (int j = 0; j < 4; ++j) scores[j] *= scale;
    }
};

struct Sums {
    float k[2 * STEPS][4], v[2 * STEPS][4];

    INLINE Sums() {
        for (int n = 0; n < 2 * STEPS; ++n) clear(k[n]), clear(v[n]);
    }
    // Adds weights times gradients to the values' sum, and slopes times queries to the keys'.
    INLINE void add(
        const Rows &first, const Rows &second, const float (&weights)[2][4],
        const float (&steep)[2][4]
    ) {
        const uint4 by_weight = halves_as_a(weights), by_slope = halves_as_a(steep);
        for (int s = 0; s < STEPS; ++s) {
            product(v[2 * s], by_weight, turned(first.grad[s].x), turned(second.grad[s].x));
            product(v[2 * s + 1], by_weight, turned(first.grad[s].y), turned(second.grad[s].y));
            product(k[2 * s], by_slope, turned(first.q[s].x), turned(second.q[s].x));
            product(k[2 * s + 1], by_slope, turned(first.q[s].y), turned(second.q[s].y));
        }
    }
};

// Event of the entry of an inverse list that is this lane's; behind the end that of the last entry,
// which is no event of another history.
INLINE int event_of(const int *order, int at, int high, int lane) {
    return order[min(at + lane, high - 1)] / (G * N);
}

// A chunk of an inverse list, of which the entries below `high` count.
struct ListChunk {
    Rows rows[2];
    Path path[2];
    int events[2][2];   // of the columns 2c and 2c + 1

    // `event`: of 32 entries, among which those of the chunk begin with the one of lane `first`.
    INLINE void load(const Queries &from, int event, int first, int at, int high, int lane) {
        const int g = lane / 4, c = lane % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = (8 * i + g) / R;
            rows[i].load(from, from_lane(event, first + row), at + row < high);
            bool held[2];
            for (int n = 0; n < 2; ++n) {
                const int column = (8 * i + 2 * c + n) / R;
                events[i][n] = n && R > 1 ? events[i][0] : from_lane(event, first + column);
                held[n] = at + column < high;
            }
            path[i].template load<0>(from, events[i], held);
        }
    }
};

// What the entries from `low` to `high` of an inverse list give. `key`: event of this lane's row g.
INLINE void add_list(
    Sums &sums, const Block &block, const Queries &from, const int *order, int low, int high,
    int key, int lane, float scale
) {
    if (low >= high) return;
    int event = event_of(order, low, high, lane), later = event_of(order, low + 32, high, lane);
    ListChunk next;
    next.load(from, event, 0, low, high, lane);
#pragma unroll 1
    for (int at = low; at < high; at += CHUNK_EVENTS) {
        const ListChunk chunk = next;
        const int ahead = at + CHUNK_EVENTS;
        if (ahead < high) {
            if ((ahead - low) % 32 == 0)
                event = later, later = event_of(order, ahead + 32, high, lane);
            next.load(from, event, (ahead - low) % 32, ahead, high, lane);
        }
        float weights[2][4], steep[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float scores[4], slopes[4];
            block.score(scores, slopes, chunk.rows[i], scale);
            for (int j = 0; j < 4; ++j)
                chunk.path[i].weigh(
                    weights[i][j], steep[i][j], scores[j], slopes[j], j % 2,
                    !(UNION && seen_twice(chunk.events[i][j % 2] - key - j / 2 * 8)));
        }
        sums.add(chunk.rows[0], chunk.rows[1], weights, steep);
    }
}

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_LISTS / TOGETHER) list_sums(
    const u16 *__restrict__ q, const u32 *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ table, const float *__restrict__ lse,
    const float *__restrict__ shifts, const u16 *__restrict__ grad, const int *__restrict__ order,
    const int *__restrict__ bounds, const int *__restrict__ owners, float4 *__restrict__ sums,
    int chunks, float scale, int q_event, int q_head
) {
    const int lane = this_lane(), chunk = this_warp();
    const ListPart part(bounds, owners, chunk, chunks);
    if (part.low >= part.high) return;
    const int list = part.list;
    const Queries from(q, grad, gates, lse, shifts, q_event, q_head, 0, list % G, lane);
    const Block block(packed, list / G, list % G, lane);
    const int key = Tile(table, list / G).first_event() + lane / 4;
    Sums sum;
    add_list(sum, block, from, order, part.low, part.high, key, lane, scale);
    store_sums(sums, chunk, sum.k, sum.v, lane);
}

INLINE void store_rows(
    u16 *out, const float (&x)[2 * STEPS][4], const Tile &at, int group, int lane, float factor
) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int event = at.first() + g + 8 * half;
        if (event >= at.length) continue;
        u16 *row = row_at(out, (at.start + event) * G + group, D) + 4 * c;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const float4 y = row_of(x, s, half);
            *reinterpret_cast<uint2 *>(row + 16 * s) =
                make_uint2(pair(y.x * factor, y.y * factor), pair(y.z * factor, y.w * factor));
        }
    }
}

// Queries of the own block and of those that the short-term path reaches over near distances.
INLINE void add_near(
    Sums &sums, const Block &block, const Queries &from, const NearPattern &pattern,
    const Tile &at, int lane, float scale
) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll 1
    for (int step = CAUSAL ? 0 : -NEAR; step <= NEAR; ++step) {
        const int first = at.first() + step * SIZE;
        if (first < 0) continue;
#pragma unroll 1
        for (int part = 0; part < R && first + part * CHUNK_EVENTS < at.length; ++part) {
            Rows rows[2];
            float weights[2][4], steep[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                // The first event of these columns, as seen from the first query of the block.
                const int begin = part * CHUNK_EVENTS + 8 * i / R;
                const int event = first + begin + g / R;
                const NearPattern seen = pattern.later(step * SIZE + begin);
                rows[i].load(from, at.start + min(event, at.length - 1), event < at.length);
                int events[2];
                bool held[2];
                for (int n = 0; n < 2; ++n) {
                    events[n] = first + begin + (2 * c + n) / R;
                    held[n] = events[n] < at.length;
                    events[n] = at.start + min(events[n], at.length - 1);
                }
                Path path;
                path.template load<1>(from, events, held);
                float scores[4], slopes[4];
                block.score(scores, slopes, rows[i], scale);
                for (int j = 0; j < 4; ++j) {
                    // Where nothing is seen ahead, no query sees a key behind the end.
                    const bool there = CAUSAL || at.first() + g + 8 * (j / 2) < at.length;
                    path.weigh(
                        weights[i][j], steep[i][j], scores[j], slopes[j], j % 2,
                        there && seen.sees(j % 2, 0, 0, j / 2));
                }
                if (step != 0) continue;
                path.template load<0>(from, events, held);
                for (int j = 0; j < 4; ++j) {
                    const bool there = CAUSAL || at.first() + g + 8 * (j / 2) < at.length;
                    float weight, slope;
                    path.weigh(
                        weight, slope, scores[j], slopes[j], j % 2,
                        there && seen.sees_own(j % 2, 0, j / 2)
                            && !(UNION && seen.sees(j % 2, 0, 0, j / 2)));
                    weights[i][j] += weight, steep[i][j] += slope;
                }
            }
            sums.add(rows[0], rows[1], weights, steep);
        }
    }
}

// Queries a far power of two away, ahead (sign 1) or behind: each key meets the R rows of one
// query. Of all the products with a block of queries a lane keeps the four that are met, and puts
// them back in their places.
INLINE void add_far(
    Sums &sums, const Block &block, const Queries &from, const Tile &at, int sign, int lane,
    float scale
) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll 1
    for (int exponent = FIRST_FAR; exponent < KNOWN; ++exponent) {
        const int first = at.first() + sign * POWER(exponent);
        if (sign > 0 ? first >= at.length : first + SIZE <= 0) break;
        Rows rows[2 * R];
        float scores[2][2], slopes[2][2];   // [row g or g + 8][column]
#pragma unroll
        for (int i = 0; i < 2 * R; ++i) {
            const int event = first + (8 * i + g) / R;
            const bool inside = event >= 0 && event < at.length;
            rows[i].load(from, at.start + (inside ? event : 0), inside);
        }
#pragma unroll
        for (int i = 0; i < 2 * R; ++i) {
            float all[4], all_slopes[4];
            block.score(all, all_slopes, rows[i], scale);
            const int half = i / R;
            for (int n = 0; n < 2; ++n)
                if (i % R == 0 || (8 * i + 2 * c + n) / R == g + 8 * half) {
                    scores[half][n] = all[2 * half + n];
                    slopes[half][n] = all_slopes[2 * half + n];
                }
        }
        float weights[2][2], steep[2][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = first + g + 8 * half;
            const bool met =
                query >= 0 && query < at.length && at.first() + g + 8 * half < at.length;
            const int event = at.start + (met ? query : 0);
            const int events[2] = {event, event};
            const bool held[2] = {met, met};
            Path path;
            path.template load<1>(from, events, held);
            for (int n = 0; n < 2; ++n)
                path.weigh(
                    weights[half][n], steep[half][n], scores[half][n], slopes[half][n], n, true);
        }
#pragma unroll
        for (int part = 0; part < R; ++part) {
            float all_weights[2][4], all_steep[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j) {
                    const int half = (2 * part + i) / R, n = j % 2;
                    const bool met = j / 2 == half
                        && (8 * (2 * part + i) + 2 * c + n) / R == g + 8 * half;
                    all_weights[i][j] = met ? weights[half][n] : 0.0f;
                    all_steep[i][j] = met ? steep[half][n] : 0.0f;
                }
            sums.add(rows[2 * part], rows[2 * part + 1], all_weights, all_steep);
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * TOGETHER, WARPS_KEYS / TOGETHER) backward_keys(
    const u16 *__restrict__ q, const u32 *__restrict__ gates, const uint4 *__restrict__ packed,
    const int *__restrict__ table, const float *__restrict__ lse,
    const float *__restrict__ shifts, const u16 *__restrict__ grad, u16 *__restrict__ grad_k,
    u16 *__restrict__ grad_v, const int *__restrict__ order, const int *__restrict__ bounds,
    const float4 *__restrict__ chunk_sums, int events, float scale, int q_event, int q_head
) {
    const int lane = this_lane(), number = this_tile(), group = this_group();
    const Tile at(table, number);
    if (at.empty()) return;
    const Queries from(
        q, grad, gates, lse, shifts, q_event, q_head, events * HEADS, group, lane);
    const NearPattern pattern(lane / 4, lane % 4);
    const Block block(packed, number, group, lane);
    Sums sums;
    const int list = number * G + group, low = bounds[2 * list], high = bounds[2 * list + 1];
    const int key = at.first_event() + lane / 4;
    add_list(sums, block, from, order, low, min(low + CHUNK, high), key, lane, scale);
    add_chunks(sums.k, sums.v, chunk_sums, low, high, lane);
    add_near(sums, block, from, pattern, at, lane, scale);
    add_far(sums, block, from, at, 1, lane, scale);
    if (!CAUSAL) add_far(sums, block, from, at, -1, lane, scale);
    store_rows(grad_k, sums.k, at, group, lane, scale * LN_2);
    store_rows(grad_v, sums.v, at, group, lane, 1.0f);
}
