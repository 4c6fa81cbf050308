// Packed histories cut into chunks of LANES events, and copies of the inputs in that layout.
//
// Every history starts a chunk of its own. In *columns* the events of a chunk are the lanes of a
// vector, one vector for each number of a head: [G, chunks, heads * d, LANES]. In *rows* the
// numbers of a head are the lanes: [G, chunks * LANES, ROW]. Where no event is there are zeros.
#pragma once

#include "threads.h"

struct Chunk {
    int64_t row;           // packed row of the first event
    int64_t first_block;   // row in the block keys of the history's block 0
    int32_t position;      // of the first event in its history
    int32_t length;        // of the history
    int events() const { return length - position < LANES ? length - position : LANES; }
    int64_t start() const { return row - position; }
};

struct Chunks {
    Buffer<Chunk> table;
    int64_t count = 0, blocks = 0;
    int32_t longest = 0;
    Status status;

    // Of the histories longer than that.
    explicit Chunks(const Problem &problem, int64_t longer = 0)
        : table(problem.rows / LANES + problem.histories), status(fill(problem, longer)) {}

    const Chunk &operator[](int64_t index) const { return table.data[index]; }
    int64_t padded() const { return count * LANES; }

  private:
    Status fill(const Problem &problem, int64_t longer) {
        if (!table.data) return NO_MEMORY;
        const int32_t *bounds = problem.cu_seqlens;
        if (bounds[0] != 0 || bounds[problem.histories] != problem.rows) return WRONG_LENGTHS;
        for (int64_t history = 0; history < problem.histories; history++)
            if (bounds[history] > bounds[history + 1]) return WRONG_LENGTHS;
        for (int64_t history = 0; history < problem.histories; history++) {
            const int32_t start = bounds[history], length = bounds[history + 1] - start;
            for (int32_t position = 0; length > longer && position < length; position += LANES)
                table.data[count++] = {start + position, blocks, position, length};
            blocks += length / S;
            if (length > longer && length > longest) longest = length;
        }
        return FINE;
    }
};

// Columns of x, [T, G * per, size], for one chunk and group: [per * size, LANES].
static void copy_columns(
    const float *x, const Chunk &chunk, int64_t group, int64_t stride, int rows, float *columns
) {
    const float *from = x + chunk.row * stride + group * rows;
    copy_across(from, stride, chunk.events(), rows, columns, LANES);
}

// Columns of the `per` heads of each group.
struct Columns {
    Buffer<float> data;
    const int64_t chunks, rows;

    Columns(const Chunks &chunks, int64_t groups, int64_t rows)
        : data(groups * chunks.padded() * rows), chunks(chunks.count), rows(rows) {}

    float *at(int64_t group, int64_t chunk) const {
        return data.data + (group * chunks + chunk) * rows * LANES;
    }
};

// Rows of keys or values.
struct Rows {
    Buffer<float> data;
    const int64_t chunks;

    Rows(const Chunks &chunks, int64_t groups)
        : data(groups * chunks.padded() * ROW), chunks(chunks.count) {}

    float *at(int64_t group, int64_t chunk) const {
        return data.data + (group * chunks + chunk) * LANES * ROW;
    }

    // From x, [T, G, d].
    void copy(const float *x, const Chunk &from, int64_t chunk, int64_t group, int64_t groups) {
        float *rows = at(group, chunk);
        memset(rows, 0, sizeof(float) * LANES * ROW);
        for (int lane = 0; lane < from.events(); lane++)
            memcpy(rows + lane * ROW, x + ((from.row + lane) * groups + group) * D,
                   sizeof(float) * D);
    }
};

// Block numbers of the events of a chunk; those of a whole chunk are alike where S allows.
static inline Mask block_numbers(int32_t position) {
    if (S % LANES == 0) return every(position / S);
    Mask block;
    for (int lane = 0; lane < LANES; lane++) block[lane] = (position + lane) / S;
    return block;
}

// The chunks of a block, and which of their lanes belong to it.
struct BlockChunks {
    int32_t first, last;
    explicit BlockChunks(int32_t block)
        : first(block * S / LANES), last((block * S + S - 1) / LANES) {}
    static constexpr int MOST = (S + LANES - 2) / LANES + 1;
    static Mask inside(int32_t block, int32_t chunk) {
        if (S % LANES == 0) return every(-1);
        const Mask position = lane_numbers() + chunk * LANES;
        return (position >= block * S) & (position < block * S + S);
    }
};
