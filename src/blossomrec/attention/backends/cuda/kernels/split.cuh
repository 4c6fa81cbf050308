// Two float32 as sums of three bf16 each.
INLINE void split(float x, float y, u32 (&parts)[3]) {
    for (int p = 0; p < 3; ++p) {
        parts[p] = pair(x, y);
        x -= low(parts[p]), y -= high(parts[p]);
    }
}

// Mean of four numbers over the R queries of a group as such sums: the first two numbers, and the
// others. `row` holds those of the group's first head.
INLINE void split_mean(
    u32 (&first)[3], u32 (&second)[3], const u16 *row, int q_head, bool held
) {
    float mean[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int head = 0; head < R; ++head) {
        const uint2 x = four(row + head * q_head, held);
        mean[0] += query_low(x.x), mean[1] += query_high(x.x);
        mean[2] += query_low(x.y), mean[3] += query_high(x.y);
    }
    split(mean[0] * (1.0f / R), mean[1] * (1.0f / R), first);
    split(mean[2] * (1.0f / R), mean[3] * (1.0f / R), second);
}

// The same of two numbers.
INLINE void split_mean(u32 (&parts)[3], const u16 *row, int q_head, bool held) {
    float mean[2] = {0.0f, 0.0f};
    for (int head = 0; head < R; ++head) {
        const u32 x = held ? *reinterpret_cast<const u32 *>(row + head * q_head) : 0;
        mean[0] += query_low(x), mean[1] += query_high(x);
    }
    split(mean[0] * (1.0f / R), mean[1] * (1.0f / R), parts);
}
