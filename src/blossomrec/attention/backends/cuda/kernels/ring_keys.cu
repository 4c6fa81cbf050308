// Backward of keys and values: one warp computes one block of keys and one group, or a part of a
// long inverse list. Rows (event, head) of queries come sixteen at a time through a ring in shared
// memory: first those of the list, then those of neighbours, which the short-term path reaches. The
// warp also writes the gradients of the queries in the list, at the indices of their choices.

// Tensors that rows are fetched from, beginning at the group's first head. q and grad begin at the
// head and the piece of the first row that this lane fetches.
struct Sources {
    const u16 *q, *grad;
    const float4 *records;
    const int *order;
    int q_event, q_head, plane;   // plane: from the long-term to the short-term path

    INLINE Sources(
        const u16 *q, const u16 *grad, const float4 *records, const int *order, int q_event,
        int q_head, int plane, int group, int lane
    ) : order(order), q_event(q_event), q_head(q_head), plane(plane) {
        const int piece = lane % PIECES, head = group * R + lane / PIECES % R;
        this->q = q + head * q_head + 8 * piece, this->grad = grad + head * D + 8 * piece;
        this->records = records + group * R;
    }
};

INLINE int event_of(int entry) { return entry < 0 ? -1 : (int)((u32)entry / (G * N)); }

// Distance from a block to the neighbours of a step; step 0 is the own block.
INLINE int distance_of(int step) {
    return step <= NEAR ? step * SIZE : POWER(min(FIRST_FAR + step - NEAR - 1, KNOWN - 1));
}

// Says which rows come next: those of an inverse list from `at` to `high`, then those of neighbours
// ahead (sign 1) and behind. There are no neighbours where sign is 0.
struct Cursor {
    int at, high, sign, neighbour;   // neighbour: the first event that comes next, in the history
    int step = 0, part = 0;

    INLINE Cursor(int at, int high, int sign, const Tile &tile)
        : at(at), high(high), sign(sign), neighbour(sign ? tile.first() : -1) {}
    INLINE bool of_list() const { return at < high; }
    INLINE bool ended(const Tile &tile) const {
        if (of_list()) return false;
        if (!ALIGNED && sign < 0) return begin() + SIZE <= 0;
        return (u32)begin() >= (u32)tile.length;
    }
    // Where no event is there from this one on, none follows. The rows of a step are those of one
    // tile, but for distances that are not aligned: then all of them count.
    INLINE int begin() const { return ALIGNED ? neighbour : neighbour - part * CHUNK_EVENTS; }
    INLINE void advance(const Tile &tile) {
        if (of_list()) {
            at += CHUNK_EVENTS;
            return;
        }
        if (++part == R) part = 0, ++step;
        neighbour = tile.first() + sign * distance_of(step) + part * CHUNK_EVENTS;
        if (!CAUSAL && sign > 0 && begin() >= tile.length)
            sign = -1, step = 1, part = 0, neighbour = tile.first() - distance_of(1);
    }
    // Entry of row lane % 16.
    INLINE int entry(const Sources &from, const Tile &tile, int lane) const {
        const int event = lane % 16 / R;
        if (of_list()) return at + event < high ? from.order[at + event] : -1;
        const bool begun = ALIGNED || neighbour + event >= 0, held = neighbour + event < tile.length;
        return begun && held ? (tile.start + neighbour + event) * (G * N) : -1;
    }
};

// Copies rows of queries, given the event of lane % 16.
struct CopyQueries {
    const Sources &from;
    int event, head;   // head: that of this lane's first row

    template <int Offset>
    INLINE void fetch(Shared to, int row) const {
        const int of = from_lane(event, row);
        // The rows that a lane fetches share a head unless they stand no multiple of R apart.
        const int others = ROWS_AT_ONCE % R ? row % R - head : 0;
        const u16 *q = row_at(from.q, of, from.q_event) + others * from.q_head;
        copy_16<Offset>(to, q, of >= 0);
        copy_16<Offset + ROWS_BYTES>(to, row_at(from.grad, of, HEADS * D) + others * D, of >= 0);
    }
};

INLINE void fetch(
    Stage &to, Shared rows, const Sources &from, const Cursor &cursor, int entry, int lane
) {
    const int event = event_of(entry);
    const bool of_list = cursor.of_list();
    fetch_rows<0>(rows, lane, CopyQueries{from, event, lane / PIECES % R});
    if (lane >= 16) return;
    to.entry[lane] = entry, to.step = cursor.sign * cursor.step, to.part = of_list ? -1 : cursor.part;
    const int place = event * HEADS + lane % R + (of_list ? 0 : from.plane);
    copy_16<0>(shared_address(&to.records[lane]), from.records + place, event >= 0);
}

// Copies keys and values of the own block; rows behind the end of the history are zeros.
struct CopyKeys {
    const u16 *k, *v;   // at the piece that this lane fetches
    int k_event, v_event;
    const Tile &tile;
    Shared values;      // distance from the keys

    template <int Offset>
    INLINE void fetch(Shared to, int row) const {
        const int event = tile.first() + row, packed = tile.start + min(event, tile.length - 1);
        copy_16<Offset>(to, row_at(k, packed, k_event), event < tile.length);
        copy_16<Offset>(to + values, row_at(v, packed, v_event), event < tile.length);
    }
};

// What one path has for the columns 2c and 2c + 1.
struct Path {
    float gate[2], lse[2], shift[2];

    INLINE void set(int n, float4 record) {
        lse[n] = record.x, shift[n] = record.y, gate[n] = UNION ? 1.0f : record.z;
    }
};

INLINE Path path_of(const Stage &stage, int row) {
    Path path;
    for (int n = 0; n < 2; ++n) path.set(n, stage.records[row + n]);
    return path;
}

// The long-term path of rows whose stage holds the short-term path.
INLINE Path long_path_of(const Stage &stage, int row, const Sources &from) {
    Path path;
    for (int n = 0; n < 2; ++n) {
        const int event = event_of(stage.entry[row + n]);
        // A row that is not there gets zeros, as in its stage: another event's lse could give NaN.
        float4 record = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (event >= 0) record = from.records[event * HEADS + (row + n) % R];
        path.set(n, record);
    }
    return path;
}

// Computes a weight times its gate, and the gradient of its score. Returns a summand of the gradient
// of the gate, or, of a union, of the bias. A score of -INFINITE means that the query does not see
// the key.
INLINE float weigh(
    float &weight, float &steep, float score, float slope, const Path &path, int n, float scale
) {
    const float plain = exp_2(score * scale - path.lse[n]);
    weight = UNION ? plain : path.gate[n] * plain;
    steep = weight * (slope - path.shift[n]);
    return UNION ? steep : plain * slope;
}

// A block of keys and its gradients.
struct Block {
    uint4 k[STEPS], v[STEPS];
    Shared rows;   // this lane's address in the keys
    float sum_k[2 * STEPS][4], sum_v[2 * STEPS][4];

    INLINE void load(Shared keys, Shared values) {
        rows = keys;
        for (int s = 0; s < STEPS; ++s) {
            const uint4 x = matrices<0>(keys ^ 32 * s), y = matrices<0>(values ^ 32 * s);
            k[s] = make_uint4(x.x, x.z, x.y, x.w), v[s] = make_uint4(y.x, y.z, y.y, y.w);
        }
        for (int n = 0; n < 2 * STEPS; ++n) clear(sum_k[n]), clear(sum_v[n]);
    }
    // Scores and slopes of sixteen rows of queries.
    INLINE void score(float (&scores)[2][4], float (&slopes)[2][4], Shared queries) const {
        for (int i = 0; i < 2; ++i) clear(scores[i]), clear(slopes[i]);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const uint4 q = matrices<0>(queries ^ 32 * s);
            const uint4 grad = matrices<ROWS_BYTES>(queries ^ 32 * s);
            product(scores[0], k[s], q.x, q.y), product(scores[1], k[s], q.z, q.w);
            product(slopes[0], v[s], grad.x, grad.y), product(slopes[1], v[s], grad.z, grad.w);
        }
    }
    // Adds weights times gradients to the values' sum, and slopes times queries to the keys'.
    INLINE void add(Shared queries, const float (&weights)[2][4], const float (&steep)[2][4]) {
        const uint4 by_weight = halves_as_a(weights), by_slope = halves_as_a(steep);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const uint4 grad = turned_matrices<ROWS_BYTES>(queries ^ 32 * s);
            product(sum_v[2 * s], by_weight, grad.x, grad.z);
            product(sum_v[2 * s + 1], by_weight, grad.y, grad.w);
            const uint4 q = turned_matrices<0>(queries ^ 32 * s);
            product(sum_k[2 * s], by_slope, q.x, q.z);
            product(sum_k[2 * s + 1], by_slope, q.y, q.w);
        }
    }
};

// Where gradients of queries and gates are written, one for each choice; add_choices sums them up, and
// puts numbers in order.
struct Choices {
    u16 *parts;
    float *slopes;

    // Gradients of sixteen queries, and their sums over the keys.
    INLINE void store(
        const Block &block, const Stage &stage, const float (&steep)[2][4],
        const float (&over_keys)[2][2], float scale, int lane
    ) const {
        const int g = lane / 4, c = lane % 4;
        uint2 columns[2];
        int entry[2];
        u16 *rows[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float scaled[4];
            for (int j = 0; j < 4; ++j) scaled[j] = steep[i][j] * (scale * LN_2);
            columns[i] = as_rows(scaled);
            entry[i] = stage.entry[8 * i + g];
            rows[i] = row_at(parts, entry[i], R * D) + g % R * D + 4 * c;
        }
        // Queries are rows of this factor, and so of the products.
        const uint4 queries = make_uint4(columns[0].x, columns[1].x, columns[0].y, columns[1].y);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const uint4 keys = turned_matrices<0>(block.rows ^ 32 * s);
            float first[4], second[4];
            clear(first), clear(second);
            product(first, queries, keys.x, keys.z), product(second, queries, keys.y, keys.w);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint2 numbers = make_uint2(
                    pair(first[2 * i], first[2 * i + 1]), pair(second[2 * i], second[2 * i + 1]));
                if (entry[i] >= 0) *reinterpret_cast<uint2 *>(rows[i] + 16 * s) = numbers;
            }
        }
        // Lanes with other keys share the columns: each hands over what others sum up.
        const bool odd = g & 1, upper = g & 2;
        float mine[2];
        for (int n = 0; n < 2; ++n) {
            const float first = over_keys[0][n], second = over_keys[1][n];
            mine[n] = (odd ? second : first) + across(odd ? first : second, 4);
        }
        float sum = (upper ? mine[1] : mine[0]) + across(upper ? mine[0] : mine[1], 8);
        sum += across(sum, 16);
        const int row = 8 * odd + 2 * c + upper, of = stage.entry[row];
        if (g < 4 && of >= 0) slopes[of * R + row % R] = sum;
    }
};

// Adds what sixteen rows of queries contribute. Rows that are not there are zeros and add nothing.
INLINE void add_stage(
    Block &block, const Choices &choices, const Stage &stage, Shared queries, const Sources &from,
    const Tile &tile, float scale, int lane
) {
    const int g = lane / 4, c = lane % 4, step = stage.step, part = stage.part;
    const bool of_list = part < 0, is_own = !of_list && step == 0;
    float scores[2][4], slopes[2][4], seen[2][4], weights[2][4], steep[2][4];
    block.score(scores, slopes, queries);
    // From a key to the event of a column, less the distance of the step.
    const auto distance = [&](int i, int j) {
        return (8 * i + 2 * c + j % 2) / R - g - 8 * (j / 2) + part * CHUNK_EVENTS;
    };
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) seen[i][j] = scores[i][j];
    if (!of_list && (step < 0 ? -step : step) > NEAR) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 4; ++j)
                if (distance(i, j) != 0) seen[i][j] = -INFINITE;
    } else if (!of_list) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 4; ++j)
                if (!visible(step * SIZE + distance(i, j))) seen[i][j] = -INFINITE;
    } else if (UNION) {
        const int key = tile.first_event() + g;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 4; ++j) {
                const int event = event_of(stage.entry[8 * i + 2 * c + j % 2]);
                if (seen_twice(event - key - j / 2 * 8)) seen[i][j] = -INFINITE;
            }
    }
    float over_keys[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const Path path = path_of(stage, 8 * i + 2 * c);
        for (int n = 0; n < 2; ++n) {
            over_keys[i][n] =
                weigh(weights[i][n], steep[i][n], seen[i][n], slopes[i][n], path, n, scale);
            over_keys[i][n] += weigh(
                weights[i][n + 2], steep[i][n + 2], seen[i][n + 2], slopes[i][n + 2], path, n,
                scale);
        }
    }
    if (is_own) {
        // The long-term path sees keys that are not ahead, and none that a union has counted.
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Path path = long_path_of(stage, 8 * i + 2 * c, from);
            for (int j = 0; j < 4; ++j) {
                const bool held = (!CAUSAL || distance(i, j) >= 0)
                    && !(UNION && visible(distance(i, j)));
                const float score = held ? scores[i][j] : -INFINITE;
                float weight, steeper;
                weigh(weight, steeper, score, slopes[i][j], path, j % 2, scale);
                weights[i][j] += weight, steep[i][j] += steeper;
            }
        }
    }
    block.add(queries, weights, steep);
    if (of_list) choices.store(block, stage, steep, over_keys, scale, lane);
}

// Adds what all rows of a cursor contribute.
INLINE void add_rows(
    Block &block, Stage *ring, const StageOfKeys &own, const Choices &choices,
    const Sources &from, const u16 *k, const u16 *v, int k_event, int v_event, const Tile &tile,
    Cursor ahead, float scale, int lane
) {
    const Shared keys = shared_address(own.rows), first = shared_address(ring);
    // The last stage stays empty until the first one is used.
    const Shared values = shared_address(ring[STAGES - 1].grad);
    const u32 to = bytes_to(lane / PIECES, lane % PIECES), read = bytes_of_lane(lane);
    const int piece = 8 * (lane % PIECES);
    fetch_rows<0>(
        keys + to, lane, CopyKeys{k + piece, v + piece, k_event, v_event, tile, values - keys});
    commit_copies();
    int entry = ahead.ended(tile) ? -1 : ahead.entry(from, tile, lane), fetched = 0;
    const auto fetch_next = [&](int stage) {
        if (!ahead.ended(tile)) {
            fetch(ring[stage], first + stage * (int)sizeof(Stage) + to, from, ahead, entry, lane);
            ++fetched;
            ahead.advance(tile);
            // The next entry is read one stage before its row is fetched.
            if (!ahead.ended(tile)) entry = ahead.entry(from, tile, lane);
        }
        commit_copies();
    };
#pragma unroll
    for (int n = 0; n < STAGES - 1; ++n) fetch_next(n);
    wait_for_copies<STAGES - 1>();
    block.load(keys + read, values + read);
    int stage = 0;
#pragma unroll 1
    for (; fetched; --fetched) {
        wait_for_copies<STAGES - 2>();
        fetch_next(stage ? stage - 1 : STAGES - 1);
        const Shared queries = first + stage * (int)sizeof(Stage) + read;
        add_stage(block, choices, ring[stage], queries, from, tile, scale, lane);
        stage = stage + 1 < STAGES ? stage + 1 : 0;
    }
}

extern "C" __global__ void __launch_bounds__(32, WARPS_RING) ring_sums(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const int *__restrict__ table, const float4 *__restrict__ records,
    const u16 *__restrict__ grad, const int *__restrict__ order, const int *__restrict__ bounds,
    const int *__restrict__ owners, float4 *__restrict__ sums, u16 *__restrict__ parts,
    float *__restrict__ slopes, int chunks, float scale, int q_event, int q_head, int k_event,
    int k_head, int v_event, int v_head
) {
    __shared__ Stage ring[STAGES];
    __shared__ StageOfKeys keys;
    const int lane = this_lane(), chunk = this_warp();
    const ListPart part(bounds, owners, chunk, chunks);
    if (part.low >= part.high) return;
    const int group = part.list % G;
    const Tile tile(table, part.list / G);
    const Sources from(q, grad, records, order, q_event, q_head, 0, group, lane);
    Block block;
    add_rows(
        block, ring, keys, {parts, slopes}, from, k + group * k_head, v + group * v_head, k_event,
        v_event, tile, Cursor(part.low, part.high, 0, tile), scale, lane);
    store_sums(sums, chunk, block.sum_k, block.sum_v, lane);
}

INLINE void store_rows(
    u16 *out, const float (&x)[2 * STEPS][4], const Tile &at, int group, int lane, float factor
) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int event = at.first() + g + 8 * half;
        u16 *row = row_at(out, (at.start + event) * G + group, D) + store_at(c);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const float4 y = row_of(x, s, half);
            const uint2 numbers = side_by_side(
                pair(y.x * factor, y.y * factor), pair(y.z * factor, y.w * factor), c);
            if (event < at.length) *reinterpret_cast<uint2 *>(row + 16 * s) = numbers;
        }
    }
}

extern "C" __global__ void __launch_bounds__(32, WARPS_RING) ring_keys(
    const u16 *__restrict__ q, const u16 *__restrict__ k, const u16 *__restrict__ v,
    const int *__restrict__ table, const float4 *__restrict__ records,
    const u16 *__restrict__ grad, u16 *__restrict__ grad_k, u16 *__restrict__ grad_v,
    const int *__restrict__ order, const int *__restrict__ bounds,
    const float4 *__restrict__ chunk_sums, u16 *__restrict__ parts, float *__restrict__ slopes,
    int events, float scale, int q_event, int q_head, int k_event, int k_head, int v_event,
    int v_head
) {
    __shared__ Stage ring[STAGES];
    __shared__ StageOfKeys keys;
    const int lane = this_lane(), number = this_tile(), group = this_group();
    const Tile tile(table, number);
    if (tile.empty()) return;
    const Sources from(q, grad, records, order, q_event, q_head, events * HEADS, group, lane);
    const int list = number * G + group, low = bounds[2 * list], high = bounds[2 * list + 1];
    Block block;
    add_rows(
        block, ring, keys, {parts, slopes}, from, k + group * k_head, v + group * v_head, k_event,
        v_event, tile, Cursor(low, min(low + CHUNK, high), 1, tile), scale, lane);
    add_chunks(block.sum_k, block.sum_v, chunk_sums, low, high, lane);
    store_rows(grad_k, block.sum_k, tile, group, lane, scale * LN_2);
    store_rows(grad_v, block.sum_v, tile, group, lane, 1.0f);
}
