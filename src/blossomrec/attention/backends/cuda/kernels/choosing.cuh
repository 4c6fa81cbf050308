// What the kernels of the selection keep.

// The N best of what has passed by, best first; of equal scores the earlier one stays ahead.
struct Best {
    float scores[N];
    int blocks[N];

    INLINE Best() {
        for (int j = 0; j < N; ++j) scores[j] = -INFINITE, blocks[j] = -1;
    }
    INLINE void add(float score, int block) {
        for (int j = 0; j < N; ++j)
            if (score > scores[j]) {
                const float other_score = scores[j];
                const int other_block = blocks[j];
                scores[j] = score, blocks[j] = block;
                score = other_score, block = other_block;
            }
    }
    INLINE void drop_first() {
        for (int j = 0; j + 1 < N; ++j) scores[j] = scores[j + 1], blocks[j] = blocks[j + 1];
        scores[N - 1] = -INFINITE, blocks[N - 1] = -1;
    }
};

// Score of the N-th best of the four lanes that share a row, or of a worse one where some are equal.
INLINE float nth_best(Best best) {
    float top = -INFINITE;
    for (int j = 0; j < N; ++j) {
        top = best.scores[0];
        for (int mask = 1; mask < 4; mask *= 2) top = fmaxf(top, across(top, mask));
        if (best.scores[0] == top) best.drop_first();
    }
    return top;
}

// The best of the four lanes that share a row; all of them get the result, no block as -1.
INLINE void merge(Best best, int (&chosen)[N]) {
    for (int j = 0; j < N; ++j) {
        float score = best.scores[0];
        u32 block = best.blocks[0];   // none is above all
        for (int mask = 1; mask < 4; mask *= 2) {
            const float other_score = across(score, mask);
            const u32 other = across((int)block, mask);
            if (other_score > score || (other_score == score && other < block))
                score = other_score, block = other;
        }
        if ((u32)best.blocks[0] == block) best.drop_first();
        chosen[j] = block;
    }
    for (int i = 0; i < N; ++i)
        for (int j = 0; j + 1 < N; ++j)
            if ((u32)chosen[j] > (u32)chosen[j + 1]) {
                const int other = chosen[j];
                chosen[j] = chosen[j + 1], chosen[j + 1] = other;
            }
}
