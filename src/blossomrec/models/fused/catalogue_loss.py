# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Softmax over a catalogue: log-sum-exp (lse) without logits in memory, their gradients in 16 bits.

Logits are made twice, which costs less than one trip of float32 numbers to memory and back. The two
products that follow the gradient of the logits are the matrix library's.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.attention.backends.gpu.products import product
from blossomrec.models.fused.kernels.catalogue_loss import (
    excess_kernel,
    loss_kernel,
    lse_kernel,
)

LARGEST_SIZE = 256
ROWS, ITEMS, WARPS = 128, 128, 8
# Tiles of items that a program goes through when it makes gradients of logits.
SPAN = 4
# Programs that fill a GPU: rows are few where a batch is small, so items are split as well.
PROGRAMS = 264
# The matrix library wants rows of a multiple of this.
ALIGNMENT = 64
# Fewer rows than this in a tile would spend more time on adding up the gradient of the catalogue
# than on the products themselves.
TILE_ROWS = 512


def takes(hidden: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels take factors of this size, and type under autocast."""
    return dtype.itemsize == 2 and hidden.shape[1] <= LARGEST_SIZE


def summed_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    limit: int,
    differentiate: bool,
    shares: Tensor | None = None,
    scaled: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Sum of the cross-entropy of all rows, and its gradients.

    Args:
        hidden: [M, D], M at least 1, in 16 bits.
        weight: [I, D] in the same type.
        targets: int64 [M], negative where the row is not to count.
        limit: gradients of logits that are held at a time.
        differentiate: whether gradients are wanted.
        shares: float32 [M], how much each row counts in the sum; all alike without.
        scaled: [M, D], ``hidden`` by ``shares`` in the type of ``hidden``, where they are given.

    Returns:
        float32 scalar, and the gradients of ``hidden``, without the shares, and of ``weight``, in
        float32, none if not wanted.
    """
    hidden, weight = hidden.contiguous(), weight.contiguous()
    lse, losses = row_lse(hidden, weight, targets)
    loss = losses.sum() if shares is None else (losses * shares).sum()
    if not differentiate:
        return loss, []
    scaled = hidden if scaled is None else scaled
    return loss, gradients_of_sum(hidden, weight, targets, lse, limit, scaled)


def gradients_of_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, limit: int, scaled: Tensor
) -> list[Tensor]:
    """Gradients of the summed cross-entropy, as of :func:`summed_cross_entropy`.

    Args:
        lse: of :func:`row_lse`, float32 [M].
        scaled: [M, D], ``hidden`` by how much each row counts.
    """
    hidden, weight, lse = hidden.contiguous(), weight.contiguous(), lse.contiguous()
    rows, items = len(hidden), len(weight)
    height = min(max(limit // items, TILE_ROWS), rows)
    width = min(_aligned(max(1, limit // height - ALIGNMENT)), _aligned(items))
    # Zero rows after the last item let the last tile be as wide as the others.
    padded = pad(weight, (0, 0, 0, -items % width))
    whole = height == rows and width >= items
    gradients = []
    if not whole:
        gradients = [torch.zeros_like(each, dtype=torch.float32) for each in (hidden, padded)]
    buffer = hidden.new_empty(height, width)
    for first in range(0, rows, height):
        part = slice(first, first + height)
        factors = hidden[part]
        excess = buffer[: len(factors)]
        for start in range(0, items, width):
            columns = slice(start, start + width)
            spans, heights = triton.cdiv(width, SPAN * ITEMS), triton.cdiv(len(factors), ROWS)
            excess_kernel[(spans, heights)](
                factors,
                weight,
                targets[part],
                lse[part],
                excess,
                len(factors),
                items,
                start,
                width,
                SPAN=SPAN,
                **_form(hidden),
            )
            products = product(excess, padded[columns]), product(excess.T, scaled[part])
            if whole:
                gradients = list(products)
                continue
            gradients[0][part] += products[0]
            gradients[1][columns] += products[1]
    return [gradients[0], gradients[1][:items]]


def row_lse(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of each row's summed exponentials, and its loss, float32 [M].

    Without a target nothing is likely and nothing is lost: infinity and zero.
    """
    hidden, weight = hidden.contiguous(), weight.contiguous()
    tiles, heights = triton.cdiv(len(weight), ITEMS), triton.cdiv(len(hidden), ROWS)
    each = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, heights)))
    parts = triton.cdiv(tiles, each)
    partial = hidden.new_empty(parts, len(hidden), dtype=torch.float32)
    target_logits, lse, losses = hidden.new_empty(3, len(hidden), dtype=torch.float32).unbind()
    lse_kernel[(heights, parts)](
        hidden,
        weight,
        targets,
        partial,
        target_logits,
        len(hidden),
        len(weight),
        each,
        **_form(hidden),
    )
    loss_kernel[(triton.cdiv(len(hidden), ROWS),)](
        partial, targets, target_logits, lse, losses, len(hidden), parts, ROWS=ROWS
    )
    return lse, losses


def _aligned(number: int) -> int:
    return triton.cdiv(number, ALIGNMENT) * ALIGNMENT


def _form(hidden: Tensor) -> dict[str, int]:
    size = hidden.shape[1]
    return {
        "D": size,
        "D_BLOCK": max(16, triton.next_power_of_2(size)),
        "ROWS": ROWS,
        "ITEMS": ITEMS,
        "num_warps": WARPS,
        "num_stages": 3 if size <= 128 else 2,
    }
