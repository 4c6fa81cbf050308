# type: ignore -- the bodies are Triton, which Python's types do not describe
"""Softmax over a catalogue: normalisers without logits in memory, gradients of logits in 16 bits.

Logits are made twice, which costs less than one trip of float32 numbers to memory and back. The two
products that follow the gradient of the logits are the matrix library's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.kernels import product, usable

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

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["rows", "items", "tiles"])
def normaliser_kernel(
    hidden,
    weight,
    targets,
    normalisers,
    target_logits,
    rows,
    items,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Logarithm of the summed exponentials over a part of the items, [parts, rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D_BLOCK)
    held = (row < rows)[:, None] & (column < D)[None]
    factors = tl.load(hidden + row.to(tl.int64)[:, None] * D + column[None], mask=held, other=0.0)
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    first = tl.program_id(1) * tiles * ITEMS
    for step in range(tiles):
        item = first + step * ITEMS + tl.arange(0, ITEMS)
        place = item.to(tl.int64)[:, None] * D + column[None]
        known = (item < items)[:, None] & (column < D)[None]
        vectors = tl.load(weight + place, mask=known, other=0.0)
        logits = tl.dot(factors, tl.trans(vectors)) * LOG2_E
        logits = tl.where((item < items)[None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        top = higher
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(normalisers + place, (top + tl.log2(total)) * LOG_2, mask=row < rows)
    if tl.program_id(1) == 0:
        target = tl.load(targets + row, mask=row < rows, other=0)
        known = held & (target >= 0)[:, None]
        vectors = tl.load(weight + target[:, None] * D + column[None], mask=known, other=0.0)
        logits = tl.sum(factors.to(tl.float32) * vectors.to(tl.float32), 1)
        tl.store(target_logits + row, logits, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "parts"])
def loss_kernel(
    partial, targets, target_logits, normalisers, losses, rows, parts, ROWS: tl.constexpr
):
    """Normalisers of all items from those of the parts, and losses, [rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(parts):
        value = tl.load(partial + part * rows + row, mask=inside, other=0.0)
        higher = tl.maximum(top, value)
        total = total * tl.exp(top - higher) + tl.exp(value - higher)
        top = higher
    counted = tl.load(targets + row, mask=inside, other=-1) >= 0
    normaliser = top + tl.log(total)
    loss = normaliser - tl.load(target_logits + row, mask=inside, other=0.0)
    tl.store(losses + row, tl.where(counted, loss, 0.0), mask=inside)
    tl.store(normalisers + row, tl.where(counted, normaliser, float("inf")), mask=inside)


@triton.jit(do_not_specialize=["rows", "items"])
def excess_kernel(
    hidden,
    weight,
    targets,
    normalisers,
    excess,
    rows,
    items,
    start,
    width,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    D_BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Gradient of the logits, probability less 1 at the target, [rows, width] from item ``start``.

    Zero beyond the last item. One program takes ``SPAN`` tiles of items.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D_BLOCK)
    held = (row < rows)[:, None] & (column < D)[None]
    factors = tl.load(hidden + row.to(tl.int64)[:, None] * D + column[None], mask=held, other=0.0)
    normaliser = tl.load(normalisers + row, mask=row < rows, other=0.0) * LOG2_E
    target = tl.load(targets + row, mask=row < rows, other=-1)
    for step in range(SPAN):
        offset = (tl.program_id(0) * SPAN + step) * ITEMS + tl.arange(0, ITEMS)
        item = start + offset
        known = (item < items)[:, None] & (column < D)[None]
        place = item.to(tl.int64)[:, None] * D + column[None]
        vectors = tl.load(weight + place, mask=known, other=0.0)
        logits = tl.dot(factors, tl.trans(vectors)) * LOG2_E
        value = tl.exp2(logits - normaliser[:, None])
        value -= (item[None] == target[:, None]).to(tl.float32)
        value = tl.where((item < items)[None], value, 0.0)
        place = row.to(tl.int64)[:, None] * width + offset[None]
        inside = (row < rows)[:, None] & (offset < width)[None]
        tl.store(excess + place, value.to(excess.dtype.element_ty), mask=inside)


def takes(hidden: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels take factors of this size, and type under autocast."""
    return usable(hidden) and dtype.itemsize == 2 and hidden.shape[1] <= LARGEST_SIZE


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, most: int, differentiate: bool
) -> tuple[Tensor, list[Tensor]]:
    """Sum of the cross-entropy of all rows, and its gradients.

    Args:
        hidden: [M, D], M at least 1, in 16 bits.
        weight: [I, D] in the same type.
        targets: int64 [M], negative where the row is not to count.
        most: gradients of logits that are held at a time.
        differentiate: whether gradients are wanted.

    Returns:
        float32 scalar, and the gradients of ``hidden`` and ``weight`` in float32, none if not
        wanted.
    """
    hidden, weight = hidden.contiguous(), weight.contiguous()
    normalisers, losses = _normalisers(hidden, weight, targets)
    loss = losses.sum()
    if not differentiate:
        return loss, []
    rows, items = len(hidden), len(weight)
    height = min(max(most // items, TILE_ROWS), rows)
    width = min(_aligned(max(1, most // height - ALIGNMENT)), _aligned(items))
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
                normalisers[part],
                excess,
                len(factors),
                items,
                start,
                width,
                SPAN=SPAN,
                **_form(hidden),
            )
            products = product(excess, padded[columns]), product(excess.T, factors)
            if whole:
                gradients = list(products)
                continue
            gradients[0][part] += products[0]
            gradients[1][columns] += products[1]
    return loss, [gradients[0], gradients[1][:items]]


def _normalisers(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of each row's summed exponentials, and its loss, float32 [M].

    Without a target nothing is likely and nothing is lost: infinity and zero.
    """
    tiles, heights = triton.cdiv(len(weight), ITEMS), triton.cdiv(len(hidden), ROWS)
    each = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, heights)))
    parts = triton.cdiv(tiles, each)
    partial = hidden.new_empty(parts, len(hidden), dtype=torch.float32)
    target_logits, normalisers, losses = hidden.new_empty(
        3, len(hidden), dtype=torch.float32
    ).unbind()
    normaliser_kernel[(heights, parts)](
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
        partial, targets, target_logits, normalisers, losses, len(hidden), parts, ROWS=ROWS
    )
    return normalisers, losses


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
