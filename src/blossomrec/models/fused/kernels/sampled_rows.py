# type: ignore -- the bodies are Triton, which Python's types do not describe
"""What a row of a sampled softmax has besides the sample: its target."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def target_kernel(
    hidden,
    vectors,
    targets,
    shares,
    others,
    means,
    lse,
    losses,
    of_targets,
    rows,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    MEAN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Loss of each row, and gradients in the row and in the vector of its target, by its share.

    ``others`` is the logarithm of the sum over the sample, ``means`` [rows, D] its gradient in
    the row, which becomes that of the loss. MEAN: whether gradients are wanted.
    """
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    there = row < rows
    inside = there[:, None] & (column < D)[None]
    place = row.to(tl.int64)[:, None] * D + column[None]
    given = tl.load(hidden + place, mask=inside, other=0.0)
    # Rounded as the factors of the products are.
    vector = tl.load(vectors + place, mask=inside, other=0.0).to(given.dtype).to(tl.float32)
    given = given.to(tl.float32)
    counted = there & (tl.load(targets + row, mask=there, other=-1) >= 0)
    share = tl.where(counted, tl.load(shares + row, mask=there, other=0.0), 0.0)
    other = tl.load(others + row, mask=counted, other=0.0)
    positive = tl.sum(given * vector, 1)
    total = tl.maximum(other, positive) + tl.log(1.0 + tl.exp(-tl.abs(other - positive)))
    tl.store(losses + row, (total - positive) * share, mask=there)
    tl.store(lse + row, tl.where(counted, total, float("inf")), mask=there)
    if MEAN:
        # Of all that is likely, what the negatives have.
        likely = (tl.exp(other - total) * share)[:, None]
        mean = tl.load(means + place, mask=inside, other=0.0)
        tl.store(means + place, likely * (mean - vector), mask=inside)
        tl.store(of_targets + place, -likely * given, mask=inside)
