# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Rows of a table by their numbers, with a gradient that is summed in a fixed order."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models import fused

# Rows that a program adds up, their numbers that it holds at a time, and parts of a sum that are
# added at a time.
ROWS, BLOCK, PARTS = 16, 128, 32
# A table of at most so many rows has sums of many parts.
FEW = 256

# By table: what the backward pass has found of its lookups so far, numbers and gradients.
_met: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Ordered(NamedTuple):
    """Numbers of rows in rising order.

    Attributes:
        keys: int32 [N].
        places: int64 [N], the row that each has; of a place beyond the rows there is nothing.
    """

    keys: Tensor
    places: Tensor


def embedding(
    index: Tensor, table: Tensor, *, ordered: Ordered | None = None, may_fuse: bool = True
) -> Tensor:
    """Rows of ``table`` [I, D], of the shape of ``index``, int64, and D.

    As :func:`torch.nn.functional.embedding`, whose gradient on a GPU takes several times as many
    kernels, and may have other bits each time where many of the numbers are the same.

    Args:
        ordered: the numbers of ``index`` where their order is known.
        may_fuse: whether kernels of a GPU may be used.

    Example:
        >>> embedding(torch.tensor([1, 0, 1]), torch.tensor([[5.0], [7.0]])).tolist()
        [[7.0], [5.0], [7.0]]
    """
    differentiable = torch.is_grad_enabled() and table.requires_grad
    if not (may_fuse and differentiable and index.numel() and fused.usable(table)):
        return F.embedding(index, table)
    return _Embedding.apply(index, table, ordered, _met.get(table))


def embedding_bag(
    values: Tensor, offsets: Tensor, table: Tensor, *, may_fuse: bool = True
) -> Tensor:
    """Sums of rows of ``table`` [I, D] by their numbers: [B, D].

    As :func:`torch.nn.functional.embedding_bag`, with a gradient as that of :func:`embedding`.

    Args:
        values: numbers of rows, int64 [N].
        offsets: where those of each sum begin, and where the last end, int64 [B + 1].
        may_fuse: whether kernels of a GPU may be used.

    Example:
        >>> values, offsets = torch.tensor([1, 0]), torch.tensor([0, 2, 2])
        >>> embedding_bag(values, offsets, torch.tensor([[5.0], [7.0]])).tolist()
        [[12.0], [0.0]]
    """
    differentiable = torch.is_grad_enabled() and table.requires_grad
    if not (may_fuse and differentiable and values.numel() and fused.usable(table)):
        return _plain_bag(values, offsets, table)
    return _Bags.apply(values, offsets, table)


def _plain_bag(values: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    return F.embedding_bag(values, table, offsets, mode="sum", include_last_offset=True)


def summed_once(table: Tensor) -> Tensor:
    """The same table, [I, D]: gradients of all that :func:`embedding` looks up in it are summed
    together at the end of the backward pass.

    One sort takes the place of one for each lookup, and no tables of gradients are added.
    """
    if not table.requires_grad:
        return table
    met = list[tuple[Tensor, Tensor]]()
    same = _SummedOnce.apply(table, met)
    _met[same] = met
    return same


class _SummedOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, met):
        ctx.met, ctx.num_rows = met, len(table)
        ctx.set_materialize_grads(False)
        return table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if not ctx.met:
            return grad, None
        numbers, rows = map(torch.cat, zip(*ctx.met, strict=True))
        ctx.met.clear()
        found = row_sums(numbers, rows, ctx.num_rows)
        return found if grad is None else grad + found, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index, table, ordered, met):
        ctx.save_for_backward(index, *(ordered or ()))
        ctx.num_rows, ctx.met = len(table), met
        return F.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        index, *ordered = ctx.saved_tensors
        if ctx.met is not None:
            ctx.met.append((index.flatten(), grad.reshape(-1, grad.shape[-1])))
            return None, None, None, None
        known = Ordered(*ordered) if ordered else None
        return None, row_sums(index, grad, ctx.num_rows, known), None, None


class _Bags(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, table):
        ctx.save_for_backward(values, offsets)
        ctx.num_rows = len(table)
        return _plain_bag(values, offsets, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, offsets = ctx.saved_tensors
        keys, order = values.int().sort(stable=True)
        # The bag of each value, whose row of the gradient it has.
        bag = torch.searchsorted(offsets, order, right=True) - 1
        return None, None, row_sums(values, grad, ctx.num_rows, Ordered(keys, bag))


def row_sums(index: Tensor, rows: Tensor, num_rows: int, ordered: Ordered | None = None) -> Tensor:
    """For each of ``num_rows`` numbers the sum of the rows that have it, [num_rows, D].

    Args:
        index: int64, the number of each row, at least one.
        rows: of the shape of ``index``, and D, on a GPU; they are summed in float32.
        ordered: the numbers where their order is known, and the rows, of any shape, that they have.
    """
    from blossomrec.models.fused.kernels.embedding import carried_sums_kernel, row_sums_kernel

    size = rows.shape[-1]
    rows = rows.reshape(-1, size).contiguous()
    # Half as many passes as of 64 bits.
    keys, order = ordered or index.reshape(-1).int().sort(stable=True)
    sums = rows.new_zeros(num_rows, size, dtype=torch.float32)
    parts, few = cdiv(len(keys), ROWS), num_rows <= FEW
    room = rows.new_zeros if few else rows.new_empty
    carried = room(parts, size, dtype=torch.float32)
    block = min(BLOCK, max(16, next_power_of_2(size)))
    shape = {"D": size, "ROWS": ROWS, "BLOCK": block}
    columns, counts = cdiv(size, block), (len(keys), len(rows))
    row_sums_kernel[(parts, columns)](keys, order, rows, sums, carried, *counts, **shape)
    if parts > 1 and few:
        # Summed as the rows are: by the other kernel, one program would add up most of the parts.
        keys, order = keys[ROWS::ROWS].contiguous(), torch.arange(parts - 1, device=keys.device)
        sums += row_sums(keys, carried[1:], num_rows, Ordered(keys, order))
    elif parts > 1:
        grid = parts - 1, columns
        carried_sums_kernel[grid](keys, carried, sums, len(keys), PARTS=PARTS, **shape)
    return sums.to(rows.dtype)
