"""Softmax over a target and shared negatives, with its gradients, in memory that is bounded.

:func:`summed_loss` is the whole computation, loss and gradients at once, of plain tensors; what
stands around it looks vectors up, sees to types and takes the mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import product
from blossomrec.losses import row_shares
from blossomrec.losses.softmax import factor_type, kernels_take

CHUNK_ELEMENTS = 1 << 23


class Predicted(NamedTuple):
    """Predictions: what is compared with items.

    Attributes:
        hidden: [M, D].
        targets: int64 [M], what the target is called among ``Negatives.items``.
        vectors: of the targets, [M, D].
        shares: how much each row counts in the sum, [M]; 0 for none.
    """

    hidden: Tensor
    targets: Tensor
    vectors: Tensor
    shares: Tensor


class Negatives(NamedTuple):
    """Items that every target is compared with, but where one is the target itself.

    Attributes:
        items: int64 [N].
        vectors: [N, D].
        bias: added to the logit of each, [N].
    """

    items: Tensor
    vectors: Tensor
    bias: Tensor


class Gradients(NamedTuple):
    """Of the summed loss.

    Attributes:
        hidden, targets: [M, D], float32 or better.
        negatives: [N, D], likewise.
    """

    hidden: Tensor
    targets: Tensor
    negatives: Tensor


def summed_loss(
    rows: Predicted, sample: Negatives, chunk_elements: int, differentiate: bool
) -> tuple[Tensor, Gradients | None]:
    """Summed loss of all rows by their shares and, if wanted, its gradients.

    The loss of a row is log(exp(s+) + sum of exp(s_n + bias_n)) - s+, where the sum leaves out
    hits of the target.

    Args:
        rows, sample: factors of one type; bias and shares are float32 or better.
        chunk_elements: largest number of logits held at once, but for those of a single row.
    """
    exact = sample.bias.dtype
    positive = (rows.hidden.to(exact) * rows.vectors.to(exact)).sum(1)
    total, gradients = positive.new_zeros(()), None
    if differentiate:
        kinds = (rows.hidden, rows.vectors, sample.vectors)
        gradients = Gradients(*(torch.zeros_like(each, dtype=exact) for each in kinds))
    height = max(1, chunk_elements // max(1, len(sample.items)))
    for start in range(0, len(positive), height):
        part = slice(start, start + height)
        chunk = Predicted(*(each[part] for each in rows))
        logits = product(chunk.hidden, sample.vectors.T).add_(sample.bias)
        logits.masked_fill_(sample.items == chunk.targets[:, None], -torch.inf)
        lse = torch.logaddexp(logits.logsumexp(1), positive[part])
        total += ((lse - positive[part]) * chunk.shares).sum()
        if gradients is not None:
            shares = logits.sub_(lse[:, None]).exp_()
            _add_gradients(chunk, sample, shares, part, gradients)
    return total, gradients


def summed_by_kernels(
    rows: Predicted, sample: Negatives, differentiate: bool
) -> tuple[Tensor, Gradients | None]:
    """As :func:`summed_loss`, on a GPU in 16 bits: logits are nowhere in memory.

    The kernels are those of the catalogue; the targets, one for each row, come on top, by vectors
    of any type.
    """
    from blossomrec.models.fused import catalogue_loss

    # Converted once for both passes.
    given = rows.hidden, sample.vectors, rows.targets.int()
    drawn = catalogue_loss.Sample(sample.items.int(), sample.bias)
    found = catalogue_loss.row_losses(*given, differentiate=differentiate, sample=drawn)
    others, _, of_hidden = found
    of_rows = rows.hidden, rows.vectors, given[2], rows.shares, others, of_hidden
    losses, lse, of_targets = catalogue_loss.target_losses(*of_rows)
    if of_hidden is None or of_targets is None:
        return losses.sum(), None
    of_negatives = catalogue_loss.catalogue_gradient(*given, lse, rows.shares, drawn)
    return losses.sum(), Gradients(of_hidden, of_targets, of_negatives)


def _add_gradients(
    chunk: Predicted, sample: Negatives, shares: Tensor, part: slice, gradients: Gradients
) -> None:
    """Gradients of a part of the rows, given the probabilities of the negatives, [rows, N]."""
    dtype, exact = chunk.hidden.dtype, shares.dtype
    others = shares.sum(1, keepdim=True)
    shares, factors = shares.to(dtype), chunk.hidden.to(exact)
    counted = chunk.shares[:, None]
    towards = product(shares, sample.vectors).sub_(others * chunk.vectors.to(exact))
    gradients.hidden[part] = towards.mul_(counted)
    gradients.targets[part] = -others * factors * counted
    gradients.negatives.add_(product(shares.T, (factors * counted).to(dtype)))


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, positives, vectors, targets, sample, row_weights, options):
        dtype, chunk_elements, differentiate, may_fuse = options
        ctx.dtypes = hidden.dtype, positives.dtype, vectors.dtype
        exact = torch.promote_types(dtype, torch.float32)
        shares = there = (targets >= 0).to(exact)
        if row_weights is not None:
            shares = row_shares(row_weights.to(exact) * there)
        with torch.autocast(hidden.device.type, enabled=False):
            rows = Predicted(hidden.to(dtype), targets, positives, shares)
            items, log_q = sample
            # Less the logarithm of how often an item is expected in the sample.
            bias = -math.log(len(items)) - log_q.to(exact)
            negatives = Negatives(items, vectors.to(dtype), bias)
            if may_fuse and kernels_take(hidden, dtype):
                total, gradients = summed_by_kernels(rows, negatives, differentiate)
            else:
                rows = rows._replace(vectors=positives.to(dtype))
                total, gradients = summed_loss(rows, negatives, chunk_elements, differentiate)
        # One share is 1 where anything counts.
        ctx.counted = shares.sum().clamp(min=1)
        ctx.save_for_backward(*(gradients or ()))
        return total / ctx.counted

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # The mean is taken here: dividing earlier would underflow in float16 factors.
        factor, both = grad / ctx.counted, zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        found = [(each * factor).to(dtype) for each, dtype in both]
        return *found, None, None, None, None


def mean_loss(
    rows: tuple[Tensor, Tensor, Tensor],
    vectors: Tensor,
    sample: tuple[Tensor, Tensor],
    row_weights: Tensor | None = None,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    may_fuse: bool = True,
) -> Tensor:
    """Mean of the losses of :func:`summed_loss`, differentiable in all vectors.

    Args:
        rows: hidden [M, D], vectors of the targets [M, D] and targets, int64 [M], negative where
            the row is not to count.
        vectors: of the negatives, [N, D].
        sample: the negatives, int64 [N], and log-probabilities with which they were drawn, [N].
        row_weights: [M], how much each row counts in the mean; all alike without.
        chunk_elements: as of :func:`summed_loss`.
        may_fuse: whether kernels of a GPU may be used, which hold no logits at all.
    """
    hidden, positives, targets = rows
    dtype = factor_type(hidden, vectors)
    differentiate = torch.is_grad_enabled() and any(
        each.requires_grad for each in (hidden, positives, vectors)
    )
    options = dtype, chunk_elements, differentiate, may_fuse
    return _SampledSoftmax.apply(hidden, positives, vectors, targets, sample, row_weights, options)
