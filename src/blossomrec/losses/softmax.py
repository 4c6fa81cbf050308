"""Softmax cross-entropy over a whole catalogue, exact, in tiles of bounded memory."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import product
from blossomrec.losses import TrainingLoss
from blossomrec.models import fused

# Fewer rows than this in a tile would spend more time on adding up the gradient of the catalogue
# than on the products themselves.
TILE_ROWS = 512


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_elements: int = 1 << 23,
    may_fuse: bool = True,
) -> Tensor:
    """Softmax cross-entropy over the whole catalogue, exact, with bounded memory.

    Logits exist in tiles of at most ``chunk_elements``; both gradients are computed together with
    the loss, so that nothing of size M x I is kept for the backward pass. Under autocast the
    factors of the products have the autocast type; sums and softmax are float32 or better.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M], each in 0 .. I-1, or negative where the row is not to count.
        chunk_elements: largest number of logits held at once; about four times as many float32
            numbers is what the loss needs beside its gradients.
        may_fuse: use the kernels of a GPU where they take this; False asks for plain PyTorch.
    """
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    summed = _by_kernels if may_fuse and _kernels_take(hidden, dtype) else _by_tiles
    return _CatalogueCrossEntropy.apply(
        hidden, weight, targets, dtype, partial(summed, chunk_elements, differentiate)
    )


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, summed):
        # Never looked at: the answer would have to come from the device.
        ctx.rows, ctx.dtypes = (targets >= 0).sum().clamp(min=1), (hidden.dtype, weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            factors, items = hidden.to(dtype), weight.to(dtype)
            total, gradients = summed(factors, items, targets)
        ctx.save_for_backward(*gradients)
        return total / ctx.rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # The mean is taken here: dividing earlier would underflow in float16 factors.
        factor = grad / ctx.rows
        scaled = [
            (each * factor).to(dtype)
            for each, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _kernels_take(hidden: Tensor, dtype: torch.dtype) -> bool:
    if not len(hidden) or not fused.usable(hidden):
        return False
    from blossomrec.models.fused import catalogue_loss

    return catalogue_loss.takes(hidden, dtype)


def _by_kernels(
    chunk_elements: int, differentiate: bool, factors: Tensor, items: Tensor, targets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss and gradients, as :func:`_by_tiles`, on a GPU in 16 bits."""
    from blossomrec.models.fused.catalogue_loss import summed_cross_entropy

    # In 16 bits eight times as many gradients of logits take what four float32 tiles take.
    return summed_cross_entropy(factors, items, targets, 8 * chunk_elements, differentiate)


def _by_tiles(
    chunk_elements: int, differentiate: bool, factors: Tensor, items: Tensor, targets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss, and its gradients [M, D] and [I, D] if they are wanted."""
    rows, exact = len(factors), torch.promote_types(factors.dtype, torch.float32)
    height = min(max(chunk_elements // len(items), TILE_ROWS), chunk_elements, rows)
    width = min(max(chunk_elements // max(height, 1), 1), len(items))
    total = factors.new_zeros((), dtype=exact)
    gradients = []
    if differentiate:
        gradients = [torch.zeros_like(each, dtype=exact) for each in (factors, items)]
    for start in range(0, rows, max(height, 1)):
        part = slice(start, start + height)
        total += _add_rows(factors[part], items, targets[part], width, part, gradients)
    return total, gradients


def _add_rows(
    factors: Tensor,
    items: Tensor,
    targets: Tensor,
    width: int,
    rows: slice,
    gradients: list[Tensor],
) -> Tensor:
    """Summed loss of some rows; adds their share to ``gradients``, [M, D] and [I, D], if given."""
    exact = torch.promote_types(factors.dtype, torch.float32)
    columns = [slice(start, start + width) for start in range(0, len(items), width)]
    lse = torch.full_like(targets, -torch.inf, dtype=exact)
    target_logits = torch.zeros_like(lse)
    logits = lse
    for column in columns:
        logits = product(factors, items[column].T)
        lse = torch.logaddexp(lse, logits.logsumexp(1))
        target_logits += _at_targets(logits, targets, column.start)
    # Where there is no target nothing is likely, and nothing is lost.
    counted = targets >= 0
    lse = lse.masked_fill(~counted, torch.inf)
    for column in columns if gradients else ():
        # A single tile is still there; several are computed again rather than kept.
        if len(columns) > 1:
            logits = product(factors, items[column].T)
        excess = logits.sub_(lse[:, None]).exp_()
        _subtract_targets(excess, targets, column.start)
        excess = excess.to(factors.dtype)
        gradients[0][rows] += product(excess, items[column])
        gradients[1][column] += product(excess.T, factors)
    return (lse - target_logits).masked_fill(~counted, 0.0).sum()


def _at_targets(logits: Tensor, targets: Tensor, start: int) -> Tensor:
    """Each row's target logit where its column is in this tile, else 0, [rows]."""
    place = targets - start
    inside = (place >= 0) & (place < logits.shape[1])
    found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return torch.where(inside, found, 0.0)


def _subtract_targets(probabilities: Tensor, targets: Tensor, start: int) -> None:
    """Take 1 from each row's target where its column is in this tile, in place."""
    place = targets - start
    inside = (place >= 0) & (place < probabilities.shape[1])
    place = place.clamp(0, probabilities.shape[1] - 1)[:, None]
    probabilities.scatter_add_(1, place, -inside[:, None].to(probabilities.dtype))


class CrossEntropy(TrainingLoss):
    """:func:`cross_entropy`."""

    captured = True

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(hidden, weight, targets, may_fuse=self.may_fuse)
