// Block keys as sums of three bf16, [3, blocks, G, D].
extern "C" __global__ void __launch_bounds__(32 * TOGETHER) split_keys(
    const float *__restrict__ keys, u16 *__restrict__ parts, int count
) {
    const int place = this_warp() * 32 + this_lane();
    if (place >= count) return;
    u32 all[3];
    split(keys[place], 0.0f, all);
    for (int p = 0; p < 3; ++p) parts[p * count + place] = (u16)all[p];
}
