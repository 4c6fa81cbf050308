// A ring in shared memory that rows of queries pass through: while a warp works on sixteen rows, the
// next ones are fetched.

// Sixteen rows (event, head) and what belongs to each. A ring is STAGES of these.
struct alignas(128) Stage {
    uint4 q[16 * PIECES], grad[16 * PIECES];
    float4 records[16];   // lse, shift, gate
    int entry[16];        // index in the selection; of neighbours event * G * N; -1 for none
    int step, part;       // of neighbours, negative behind; part is -1 where the rows are a list's
};

struct alignas(128) StageOfKeys {
    uint4 rows[16 * PIECES];
};
