// A float32 as the sum of three bf16, of two numbers.
INLINE void split(float x, float y, u32 (&parts)[3]) {
    for (int p = 0; p < 3; ++p) {
        parts[p] = pair(x, y);
        x -= low(parts[p]), y -= high(parts[p]);
    }
}
