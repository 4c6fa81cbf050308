# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Rows of a table by their numbers, with a gradient that is summed in a fixed order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models import fused

# Rows that a program adds up, their numbers that it holds at a time, and parts of a sum that are
# added at a time.
ROWS, BLOCK, PARTS = 16, 128, 32


def embedding(index: Tensor, table: Tensor, *, may_fuse: bool = True) -> Tensor:
    """Rows of ``table`` [I, D], of the shape of ``index``, int64, and D.

    As :func:`torch.nn.functional.embedding`, whose gradient takes several times as many kernels
    on a GPU; of both, and unlike that of indexing, it is the same to the bit each time.

    Args:
        may_fuse: whether kernels of a GPU may be used.

    Example:
        >>> embedding(torch.tensor([1, 0, 1]), torch.tensor([[5.0], [7.0]])).tolist()
        [[7.0], [5.0], [7.0]]
    """
    differentiable = torch.is_grad_enabled() and table.requires_grad
    if not (may_fuse and differentiable and index.numel() and fused.usable(table)):
        return F.embedding(index, table)
    return _Embedding.apply(index, table)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index, table):
        ctx.save_for_backward(index)
        ctx.num_rows = len(table)
        return F.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return None, row_sums(index, grad, ctx.num_rows)


def row_sums(index: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """For each of ``num_rows`` numbers the sum of the rows that have it, [num_rows, D].

    Args:
        index: int64, the number of each row, at least one.
        rows: of the shape of ``index``, and D, on a GPU; they are summed in float32.
    """
    from blossomrec.models.fused.kernels.embedding import carried_sums_kernel, row_sums_kernel

    size = rows.shape[-1]
    rows = rows.reshape(-1, size).contiguous()
    # Half as many passes as of 64 bits.
    keys, order = index.reshape(-1).int().sort(stable=True)
    sums = rows.new_zeros(num_rows, size, dtype=torch.float32)
    parts = cdiv(len(keys), ROWS)
    carried = rows.new_empty(parts, size, dtype=torch.float32)
    block = min(BLOCK, max(16, next_power_of_2(size)))
    shape = {"D": size, "ROWS": ROWS, "BLOCK": block}
    columns = cdiv(size, block)
    row_sums_kernel[(parts, columns)](keys, order, rows, sums, carried, len(keys), **shape)
    if parts > 1:
        grid = parts - 1, columns
        carried_sums_kernel[grid](keys, carried, sums, len(keys), PARTS=PARTS, **shape)
    return sums.to(rows.dtype)
