"""Softmax cross-entropy over a whole catalogue, exact, in tiles of bounded memory."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import product
from blossomrec.losses import row_shares
from blossomrec.models import fused

# Fewer rows than this in a tile would spend more time on adding up the gradient of the catalogue
# than on the products themselves.
TILE_ROWS = 512


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weights: Tensor | None = None,
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
        row_weights: [M], how much each row counts in the mean, 0 or more; all alike without.
        chunk_elements: largest number of logits held at once; about four times as many float32
            numbers is what the loss needs beside its gradients. The kernels hold none.
        may_fuse: use the kernels of a GPU where they take this; False asks for plain PyTorch.
    """
    dtype, differentiate = factor_type(hidden, weight), _differentiable(hidden, weight)
    kernels = may_fuse and kernels_take(hidden, dtype)
    summed = _by_kernels if kernels else partial(_by_tiles, chunk_elements)
    return _CatalogueCrossEntropy.apply(
        hidden, weight, targets, row_weights, dtype, partial(summed, differentiate)
    )


def row_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_elements: int = 1 << 23,
    may_fuse: bool = True,
) -> Tensor:
    """As :func:`cross_entropy`, the losses of single rows, [M], each with a gradient of its own.

    They are 0 where the target is negative. Logits are computed again for the gradient of the
    catalogue, since how much rows count is not known before.

    Args:
        hidden, weight, targets, chunk_elements, may_fuse: as of :func:`cross_entropy`.

    Example:
        >>> losses = row_cross_entropy(torch.zeros(2, 3), torch.zeros(8, 3), torch.tensor([5, -1]))
        >>> losses.exp().round()
        tensor([8., 1.])
    """
    dtype = factor_type(hidden, weight)
    kernels = may_fuse and kernels_take(hidden, dtype)
    options = chunk_elements, kernels, _differentiable(hidden, weight)
    return _RowCrossEntropy.apply(hidden, weight, targets, dtype, options)


def _differentiable(hidden: Tensor, weight: Tensor) -> bool:
    """Whether gradients are wanted."""
    return torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)


def factor_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Type of the factors of the products."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)


class Rows(NamedTuple):
    """Predictions as the products take them.

    factors: [M, D]. targets: [M]. shares: [M], how much each row counts; None for all alike.
    """

    factors: Tensor
    targets: Tensor
    shares: Tensor | None

    @staticmethod
    def of(hidden: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Rows:
        factors = hidden.to(dtype)
        if weights is None:
            return Rows(factors, targets, None)
        exact = torch.promote_types(dtype, torch.float32)
        return Rows(factors, targets, row_shares(weights.to(exact).masked_fill(targets < 0, 0.0)))

    def part(self, rows: slice) -> Rows:
        shares = None if self.shares is None else self.shares[rows]
        return Rows(self.factors[rows], self.targets[rows], shares)

    def sum(self, losses: Tensor) -> Tensor:
        return losses.sum() if self.shares is None else (losses * self.shares).sum()


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, row_weights, dtype, summed):
        ctx.dtypes = hidden.dtype, weight.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            rows = Rows.of(hidden, targets, row_weights, dtype)
            # Never looked at: the answer would have to come from the device. One share is 1 where
            # anything counts.
            ctx.counted = rows.sum(targets >= 0).clamp(min=1)
            total, gradients = summed(rows, weight.to(dtype))
        shares = [] if rows.shares is None else [rows.shares[:, None]]
        ctx.save_for_backward(*gradients, *shares)
        return total / ctx.counted

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # The mean is taken here: dividing earlier would underflow in float16 factors.
        of_hidden, of_weight, *shares = ctx.saved_tensors
        factor = grad / ctx.counted
        factors = [factor if not shares else factor * shares[0], factor]
        scaled = [
            (each * by).to(dtype)
            for each, by, dtype in zip((of_hidden, of_weight), factors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None


class _RowCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, options):
        chunk_elements, kernels, differentiate = options
        ctx.dtype, ctx.chunk_elements, ctx.kernels = dtype, chunk_elements, kernels
        factors, items = hidden.to(dtype), weight.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            if kernels:
                from blossomrec.models.fused.catalogue_loss import row_losses

                lse, losses, of_rows = row_losses(
                    factors, items, targets, differentiate=differentiate
                )
            else:
                parts, width = tiles(chunk_elements, factors, items)
                # Of no rows at all, too.
                found = [
                    tile_lse(factors[part], targets[part], items, width)[:2]
                    for part in parts or [slice(0)]
                ]
                lse, losses = (torch.cat(each) for each in zip(*found, strict=True))
                of_rows = None
        ctx.save_for_backward(hidden, weight, targets, lse, of_rows)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, targets, lse, of_rows = ctx.saved_tensors
        # In 16 bits small gradients of rows would be lost.
        top = torch.nn.functional.pad(grad.abs(), (0, 1)).amax()
        shares = grad / torch.where(top > 0, top, 1.0)
        items = weight.to(ctx.dtype)
        rows = Rows(hidden.to(ctx.dtype), targets, shares)
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.kernels:
                from blossomrec.models.fused.catalogue_loss import catalogue_gradient

                of_items = catalogue_gradient(rows.factors, items, targets, lse, shares)
            else:
                of_rows, of_items = tile_gradients(ctx.chunk_elements, rows, items, lse)
        of_hidden = (of_rows * grad[:, None]).to(hidden.dtype)
        return of_hidden, (of_items * top).to(weight.dtype), None, None, None


def tile_gradients(
    chunk_elements: int, rows: Rows, items: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients [M, D], as if each row counted 1, and [I, D]."""
    of_rows, of_items = _zeros(rows.factors, items)
    parts, width = tiles(chunk_elements, rows.factors, items)
    for part in parts:
        _add_gradients(rows.part(part), items, width, lse[part], [of_rows[part], of_items])
    return of_rows, of_items


def kernels_take(hidden: Tensor, dtype: torch.dtype) -> bool:
    if not len(hidden) or not fused.usable(hidden):
        return False
    from blossomrec.models.fused import catalogue_loss

    return catalogue_loss.takes(hidden, dtype)


def _by_kernels(differentiate: bool, rows: Rows, items: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Summed loss and gradients, as :func:`_by_tiles`, on a GPU in 16 bits."""
    from blossomrec.models.fused.catalogue_loss import catalogue_gradient, row_losses

    lse, losses, of_rows = row_losses(
        rows.factors, items, rows.targets, differentiate=differentiate
    )
    if of_rows is None:
        return rows.sum(losses), []
    of_items = catalogue_gradient(rows.factors, items, rows.targets, lse, rows.shares)
    return rows.sum(losses), [of_rows, of_items]


def _by_tiles(
    chunk_elements: int, differentiate: bool, rows: Rows, items: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss, and its gradients [M, D] and [I, D] if they are wanted.

    The loss and the gradient of the catalogue have the shares of the rows in them; those of single
    rows do not.
    """
    factors = rows.factors
    parts, width = tiles(chunk_elements, factors, items)
    total = factors.new_zeros((), dtype=torch.promote_types(factors.dtype, torch.float32))
    gradients = _zeros(factors, items) if differentiate else []
    for part in parts:
        tile = [each[part] for each in gradients[:1]] + gradients[1:]
        total += _add_rows(rows.part(part), items, width, tile)
    return total, gradients


def _zeros(*like: Tensor) -> list[Tensor]:
    """Zeros in which products of tensors like these are summed."""
    exact = [torch.promote_types(each.dtype, torch.float32) for each in like]
    return [torch.zeros_like(each, dtype=dtype) for each, dtype in zip(like, exact, strict=True)]


def tiles(chunk_elements: int, factors: Tensor, items: Tensor) -> tuple[list[slice], int]:
    """Parts of the rows that are taken together, and how many items are."""
    count = len(factors)
    height = min(max(chunk_elements // len(items), TILE_ROWS), chunk_elements, count)
    width = min(max(chunk_elements // max(height, 1), 1), len(items))
    starts = range(0, count, max(height, 1))
    return [slice(start, start + height) for start in starts], width


def _add_rows(rows: Rows, items: Tensor, width: int, gradients: list[Tensor]) -> Tensor:
    """Summed loss of some rows; adds to their ``gradients``, [M, D] and [I, D], if given."""
    lse, losses, logits = tile_lse(rows.factors, rows.targets, items, width)
    if gradients:
        # A single tile is still there; several are computed again rather than kept.
        _add_gradients(rows, items, width, lse, gradients, logits if width >= len(items) else None)
    return rows.sum(losses)


def tile_lse(
    factors: Tensor, targets: Tensor, items: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp and losses of some rows, [rows], and the logits of the last columns."""
    exact = torch.promote_types(factors.dtype, torch.float32)
    lse = torch.full_like(targets, -torch.inf, dtype=exact)
    target_logits = torch.zeros_like(lse)
    logits = lse
    for column in _columns(items, width):
        logits = product(factors, items[column].T)
        lse = torch.logaddexp(lse, logits.logsumexp(1))
        target_logits += _at_targets(logits, targets, column.start)
    # Where there is no target nothing is likely, and nothing is lost.
    counted = targets >= 0
    lse = lse.masked_fill(~counted, torch.inf)
    return lse, (lse - target_logits).masked_fill(~counted, 0.0), logits


def _add_gradients(
    rows: Rows,
    items: Tensor,
    width: int,
    lse: Tensor,
    gradients: list[Tensor],
    logits: Tensor | None = None,
) -> None:
    """Add to the gradients [M, D] and [I, D] of some rows; logits of a single tile are used up."""
    factors, targets, shares = rows
    for column in _columns(items, width):
        tile = product(factors, items[column].T) if logits is None else logits
        excess = tile.sub_(lse[:, None]).exp_()
        _subtract_targets(excess, targets, column.start)
        gradients[0] += product(excess.to(factors.dtype), items[column])
        if shares is not None:
            excess *= shares[:, None]
        gradients[1][column] += product(excess.to(factors.dtype).T, factors)


def _columns(items: Tensor, width: int) -> list[slice]:
    return [slice(start, start + width) for start in range(0, len(items), width)]


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
