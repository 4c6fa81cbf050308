// What the kernels that compute gradients of queries share.
//
// Of a softmax with weights w over values v the gradient of a score is gate * w * (slope - shift),
// with slope = grad . v and shift = sum(w * slope), which is also the gradient of the path's gate.
// That of the short-term path is found first. What its share leaves of grad . out is that of the
// long-term path, whose keys and values need to be fetched once then.
//
// A union has one softmax, whose shift is grad . out: all its keys and values are fetched once. The
// gradient of the bias is the sum of those of the scores it is added to, and as all scores' sum up
// to 0, minus the sum of the others. The mean of both suffers half as much by the rounding of out.

// Of the columns of a unit: gates and lse of each path, and shifts of zero,
// [long or short][column]. `places`: of the columns' numbers among [T, H].
INLINE void load_paths(
    float (&gate)[2][2], float (&logs)[SOFTMAXES][2], float (&shift)[SOFTMAXES][2],
    int (&places)[2], const Gates *gates, const float *lse, int plane, const Unit &unit,
    const Tile &at, int group
) {
    places_of(places, unit, at, group);
    load_gates(gate, gates, places);
    for (int path = 0; path < SOFTMAXES; ++path) {
        load_two(logs[path], lse + path * plane, places);
        for (int i = 0; i < 2; ++i) shift[path][i] = 0.0f;
    }
}

// Scores to weights, given the lse of each column; adds up weight * slope.
INLINE void weigh_again(
    float (&scores)[4], const float (&slopes)[4], const float (&lse)[2], float (&shift)[2],
    float scale
) {
    for (int i = 0; i < 4; ++i) {
        scores[i] = exp_2(scores[i] * scale - lse[i % 2]);
        shift[i % 2] += scores[i] * slopes[i];
    }
}

// Gradients of scores in the place of weights: `lost` is gate * shift.
INLINE void steepen(
    float (&weights)[4], const float (&slopes)[4], const float (&gate)[2], const float (&lost)[2]
) {
    for (int i = 0; i < 4; ++i) weights[i] *= gate[i % 2] * slopes[i] - lost[i % 2];
}

// Sum of products of the numbers of two rows, of the columns 2c and 2c + 1.
INLINE void row_products(
    float (&sums)[2], const uint2 (&x)[STEPS], const uint2 (&y)[STEPS], int c
) {
    float sum = 0.0f;
    for (int s = 0; s < STEPS; ++s)
        sum += low(x[s].x) * low(y[s].x) + high(x[s].x) * high(y[s].x)
            + low(x[s].y) * low(y[s].y) + high(x[s].y) * high(y[s].y);
    sum += across(sum, 1);
    sum += across(sum, 2);
    for (int i = 0; i < 2; ++i) sums[i] = from_lane(sum, 4 * (2 * c + i));
}
