"""Softmax over a catalogue of which every rank has a part, exact, for the rows of all ranks.

Each rank compares the rows of all with its own items. The parts of a row's sum of exponentials and
of its gradient meet in collectives, as large as the rows; the gradient of an item never leaves its
rank (vocabulary-parallel: Shoeybi et al., arXiv 1909.08053).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, pad

from blossomrec.losses.softmax import (
    Rows,
    factor_type,
    kernels_take,
    tile_gradients,
    tile_lse,
    tiles,
)
from blossomrec.ranks import Ranks


def sharded_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ranks: Ranks,
    *,
    first: int,
    longest: int,
    alike: bool = False,
    chunk_elements: int = 1 << 23,
    may_fuse: bool = True,
) -> Tensor:
    """Losses of this rank's rows over the catalogue of all ranks, [M].

    As :func:`blossomrec.losses.softmax.row_cross_entropy` over all items. The gradient of
    ``weight`` is that of the losses of all ranks, that of ``hidden`` of its own.

    Args:
        hidden: [M, D].
        weight: [S, D], this rank's items, one at least.
        targets: int64 [M], rows of the whole catalogue, or negative where the row is not to count.
        ranks: which all call this together.
        first: row of the whole catalogue that this rank's first item is.
        longest: the largest M of any rank.
        alike: whether all rows with a target, of all ranks, count the same in what is
            differentiated, as in their mean; there is less to compute then.
        chunk_elements, may_fuse: as of :func:`blossomrec.losses.cross_entropy`.
    """
    dtype = factor_type(hidden, weight)
    kernels = may_fuse and kernels_take(weight, dtype)
    options = ranks, first, longest, alike, chunk_elements, kernels
    return _ShardedCrossEntropy.apply(hidden, weight, targets, dtype, options)


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, options):
        ranks, first, longest, _, chunk_elements, kernels = ctx.options = options
        ctx.dtypes, ctx.dtype = (hidden.dtype, weight.dtype), dtype
        # As many rows of each rank, so that nobody has to ask how many there are.
        spare = longest - len(hidden)
        factors = ranks.gather(pad(hidden.to(dtype), (0, 0, 0, spare)))
        wanted = ranks.gather(pad(targets, (0, spare), value=-1))
        items, here = weight.to(dtype), (wanted >= first) & (wanted < first + len(weight))
        # Behind the last item stand those of other ranks.
        local = torch.where(here, wanted - first, len(weight)).where(wanted >= 0, -1)
        with torch.autocast(hidden.device.type, enabled=False):
            own, of_rows = _own_items(factors, items, local, chunk_elements, kernels)
            parts = ranks.gather(own[None])  # [N, 2, N * longest]
            lse = parts[:, 0].logsumexp(0)
            losses = (lse - parts[:, 1].sum(0)).masked_fill(wanted < 0, 0.0)
            if of_rows is not None:
                _to_all_items(of_rows, items, local, own[0], lse)
        ctx.save_for_backward(factors, weight, local, lse, of_rows)
        ctx.start = ranks.rank * longest
        return losses[ctx.start : ctx.start + len(hidden)]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        factors, weight, local, lse, of_rows = ctx.saved_tensors
        ranks, _, longest, alike, chunk_elements, kernels = ctx.options
        grads = ranks.gather(pad(grad, (0, longest - len(grad))))
        # In 16 bits small gradients of rows would be lost.
        top = grads.index_select(0, grads.abs().argmax()[None])
        # Rows without a target, which may have another gradient, are nothing likely anyway.
        shares = None if alike else grads / torch.where(top != 0, top, 1.0)
        rows, items = Rows(factors, local, shares), weight.to(ctx.dtype)
        with torch.autocast(grad.device.type, enabled=False):
            if kernels:
                from blossomrec.models.fused.catalogue_loss import catalogue_gradient

                of_items = catalogue_gradient(factors, items, local, lse, shares)
            else:
                of_rows, of_items = tile_gradients(chunk_elements, rows, items, lse)
        of_hidden = ranks.sum_to_owners(of_rows)[: len(grad)] * grad[:, None]
        of_hidden, of_items = of_hidden.to(ctx.dtypes[0]), (of_items * top).to(ctx.dtypes[1])
        return of_hidden, of_items, None, None, None


def _own_items(
    factors: Tensor, items: Tensor, targets: Tensor, chunk_elements: int, kernels: bool
) -> tuple[Tensor, Tensor | None]:
    """Logarithm of the sum over these items and logit of the target, 0 where it is none of them:
    [2, R]; and, of the kernels, the gradient of the rows as if these were all items, [R, D]."""
    if kernels:
        from blossomrec.models.fused.catalogue_loss import row_losses

        lse, losses, of_rows = row_losses(factors, items, targets, differentiate=True)
    else:
        parts, width = tiles(chunk_elements, factors, items)
        found = [tile_lse(factors[part], targets[part], items, width)[:2] for part in parts]
        lse, losses = (torch.cat(each) for each in zip(*found, strict=True))
        of_rows = None
    here = (targets >= 0) & (targets < len(items))
    return torch.stack((lse, (lse - losses).masked_fill(~here, 0.0))), of_rows


def _to_all_items(
    of_rows: Tensor, items: Tensor, targets: Tensor, own: Tensor, lse: Tensor
) -> None:
    """Make of gradients of rows, as if these were all items, their parts over all, in place.

    Args:
        own, lse: logarithms of the sums over these and over all items, [R].
    """
    counted = targets >= 0
    share = torch.where(counted, own - lse, -torch.inf).exp()[:, None]
    here = (counted & (targets < len(items)))[:, None]
    vectors = embedding(targets.clamp(0, len(items) - 1), items).float()
    # The mean vector has a smaller share in the whole, the target's has not.
    of_rows.mul_(share).addcmul_((share - 1) * here, vectors)
