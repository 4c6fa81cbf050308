// What the kernels of the selection share.

// How many blocks, from the history's first on, the events of a tile choose among; events that look
// both ways leave out their own block.
INLINE int reach_of(const Tile &at) {
    const int complete = at.length / SIZE;
    return CAUSAL ? min(at.block, complete) : complete;
}

// The N best blocks seen so far, best first. Of equal scores the earlier one stays ahead.
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
    // The same in fewer instructions, without branches, for lanes that all have one to add.
    INLINE void add_in_step(float score, int block) {
        for (int j = N - 1; j > 0; --j) {
            const bool moves = score > scores[j - 1], enters = score > scores[j];
            scores[j] = moves ? scores[j - 1] : enters ? score : scores[j];
            blocks[j] = moves ? blocks[j - 1] : enters ? block : blocks[j];
        }
        if (score > scores[0]) scores[0] = score, blocks[0] = block;
    }
    INLINE void drop_first() {
        for (int j = 0; j + 1 < N; ++j) scores[j] = scores[j + 1], blocks[j] = blocks[j + 1];
        scores[N - 1] = -INFINITE, blocks[N - 1] = -1;
    }
};

// The N-th best score of the four lanes that share a row, or a lower one where scores are equal.
INLINE float nth_best(Best best) {
    float top = -INFINITE;
    for (int j = 0; j < N; ++j) {
        top = best.scores[0];
        for (int mask = 1; mask < 4; mask *= 2) top = fmaxf(top, across(top, mask));
        if (best.scores[0] == top) best.drop_first();
    }
    return top;
}

// The N best blocks of the four lanes that share a row, in rising order; -1 stands for none and comes
// last. All four lanes get the result.
INLINE void merge(Best best, int (&chosen)[N]) {
    for (int j = 0; j < N; ++j) {
        float score = best.scores[0];
        u32 block = best.blocks[0];   // none, -1, is the highest
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

// Writes the blocks that the event of row g, or g + 8, chose.
INLINE void store_chosen(
    int *selected, const Best &best, int half, const Tile &at, int group, int lane
) {
    int chosen[N];
    merge(best, chosen);
    const int event = at.first() + lane / 4 + 8 * half;
    if (lane % 4 == 0 && event < at.length)
        for (int j = 0; j < N; ++j)
            selected[((at.start + event) * G + group) * N + j] = chosen[j];
}
