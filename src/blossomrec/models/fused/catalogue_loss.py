# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Softmax over a catalogue by kernels: neither logits nor their gradients are ever in memory.

Two passes make what three products would: one the logarithm of each row's summed exponentials (lse)
together with the gradient of the row, which is the mean of the item vectors less the target's; the
other one makes logits again, and of them the gradient of the catalogue.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models.fused.kernels.catalogue_loss import items_kernel, loss_kernel, rows_kernel
from blossomrec.models.fused.kernels.sampled_rows import target_kernel

LARGEST_SIZE = 256
# The tile that a program holds of its own side, that of the other side which it sees at a time, and
# its warps, by the size of vectors; the fastest of a dozen on an H200.
ROWS_FORMS = {128: (128, 128, 8), 256: (128, 64, 8)}
ITEMS_FORMS = {64: (128, 64, 4), 128: (64, 64, 4), 256: (128, 64, 8)}
STAGES = 3
# Rows of a program that brings parts together.
LOSS_ROWS = 16
# One side is cut into parts where the other alone would leave processors idle: into as many as
# keep this share of them busy, but no more than this many.
BUSY = 0.95
LARGEST_PARTS = 32


class Sample(NamedTuple):
    """What items that are a sample of a catalogue are called, and what is added to their logits.

    Attributes:
        numbers: int64 [I]; one that is a row's target does not count for that row.
        bias: float32 [I].
    """

    numbers: Tensor
    bias: Tensor


def takes(hidden: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels take factors of this size, and type under autocast."""
    return dtype.itemsize == 2 and hidden.shape[1] <= LARGEST_SIZE


def row_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    differentiate: bool,
    sample: Sample | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The cross-entropy of each row, and its gradient in the row.

    Args:
        hidden: [M, D], M at least 1, in 16 bits.
        weight: [I, D] in the same type.
        targets: int64 or int32 [M], negative where the row is not to count; I or more where the
            target is another item than these, so that the loss is the logarithm of the sum.
        differentiate: whether the gradient is wanted.
        sample: what the items are among those of a catalogue. Targets are numbers of the catalogue
            then, the loss is the logarithm of the sum, and a row for which no item counts has that
            of 0 and a gradient of zeros.

    Returns:
        float32: logarithm of the row's summed exponentials [M], loss [M], gradient [M, D]. Without
        a target they are infinity and zeros.
    """
    hidden, weight, (rows, size) = hidden.contiguous(), weight.contiguous(), hidden.shape
    height, width, warps = _form(ROWS_FORMS, size)
    heights, tiles = cdiv(rows, height), cdiv(len(weight), width)
    parts, each = _cut(heights, tiles, hidden.device)
    partial = hidden.new_empty(parts, rows, dtype=torch.float32)
    means = hidden.new_empty(parts if differentiate else 0, rows, size, dtype=torch.float32)
    lse, losses = hidden.new_empty(2, rows, dtype=torch.float32).unbind()
    gradient = hidden.new_empty(hidden.shape, dtype=torch.float32) if differentiate else None
    shape = {"D": size, "D_BLOCK": _block(size), "MEAN": differentiate}
    rows_kernel[(heights, parts)](
        hidden,
        weight,
        *_compared(targets, sample),
        partial,
        means,
        rows,
        len(weight),
        each,
        ROWS=height,
        ITEMS=width,
        SAMPLE=sample is not None,
        num_warps=warps,
        num_stages=STAGES,
        **shape,
    )
    if sample is not None:
        # The target is none of these items.
        targets = torch.where(targets >= 0, len(weight), -1)
    loss_kernel[(cdiv(rows, LOSS_ROWS),)](
        hidden,
        weight,
        targets,
        partial,
        means,
        lse,
        losses,
        # Not written to where it is not wanted.
        means if gradient is None else gradient,
        rows,
        len(weight),
        parts,
        ROWS=LOSS_ROWS,
        **shape,
    )
    return lse, losses, gradient


def target_losses(
    hidden: Tensor,
    vectors: Tensor,
    targets: Tensor,
    shares: Tensor,
    others: Tensor,
    means: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The target of each row beside a sample, for which :func:`row_losses` gave what others have.

    Args:
        hidden, targets: as of :func:`row_losses`.
        vectors: of the targets, [M, D], rounded to the type of ``hidden``.
        shares: float32 [M], how much each row counts.
        others: float32 [M], logarithm of the sum over the sample.
        means: float32 [M, D], gradient of that in the row, which becomes that of the losses; None
            where none is wanted.

    Returns:
        Loss of each row by its share, [M]; logarithm of the whole sum, [M], infinity without a
        target; gradient of the losses in ``vectors``, [M, D].
    """
    hidden, vectors, (rows, size) = hidden.contiguous(), vectors.contiguous(), hidden.shape
    losses, lse = torch.empty_like(others), torch.empty_like(others)
    gradient = None if means is None else torch.empty_like(means)
    target_kernel[(cdiv(rows, LOSS_ROWS),)](
        *(hidden, vectors, targets, shares.contiguous(), others, means, lse, losses, gradient),
        rows,
        D=size,
        D_BLOCK=_block(size),
        MEAN=means is not None,
        ROWS=LOSS_ROWS,
    )
    return losses, lse, gradient


def catalogue_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    shares: Tensor | None = None,
    sample: Sample | None = None,
) -> Tensor:
    """Gradient of the summed losses of rows in the catalogue, float32 [I, D].

    Args:
        hidden, weight, targets, sample: as of :func:`row_losses`.
        lse: float32 [M], as it returned it, or of a larger sum.
        shares: float32 [M], how much each row counts in the sum, -1 to 1; all 1 without.
    """
    hidden, weight, (items, size) = hidden.contiguous(), weight.contiguous(), weight.shape
    width, height, warps = _form(ITEMS_FORMS, size)
    widths, tiles = cdiv(items, width), cdiv(len(hidden), height)
    parts, each = _cut(widths, tiles, hidden.device)
    gradients = hidden.new_empty(parts, items, size, dtype=torch.float32)
    items_kernel[(widths, parts)](
        hidden,
        weight,
        *_compared(targets, sample),
        lse,
        lse if shares is None else shares.contiguous(),
        gradients,
        len(hidden),
        items,
        each,
        D=size,
        D_BLOCK=_block(size),
        ROWS=height,
        ITEMS=width,
        SHARED=shares is not None,
        SAMPLE=sample is not None,
        num_warps=warps,
        num_stages=STAGES,
    )
    return gradients[0] if parts == 1 else gradients.sum(0)


def _compared(targets: Tensor, sample: Sample | None) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, and what a kernel is given for a sample: what it does not read where there is none.

    Each target is compared with each item, and numbers of 32 bits at once.
    """
    targets = targets.int()
    if sample is None:
        return targets, targets, targets
    return targets, sample.numbers.int(), sample.bias.contiguous()


def _cut(held: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts the other side is cut, and how many of its tiles each has."""
    processors, best = _processors(device), (0.0, 1, tiles)
    for wanted in range(1, min(LARGEST_PARTS, tiles) + 1):
        each = cdiv(tiles, wanted)
        parts = cdiv(tiles, each)
        busy = held * tiles / (cdiv(held * parts, processors) * processors * each)
        best = max(best, (busy, parts, each), key=lambda one: one[0])
        if best[0] >= BUSY:
            break
    return best[1:]


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _block(size: int) -> int:
    return max(16, next_power_of_2(size))


def _form(forms: dict[int, tuple[int, int, int]], size: int) -> tuple[int, int, int]:
    return next(form for largest, form in forms.items() if size <= largest)
