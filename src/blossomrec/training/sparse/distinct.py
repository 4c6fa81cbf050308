"""Which rows of a table are needed, each once: on the device, in tensors of a size known before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from blossomrec.models.fused.embedding import Ordered

# Numbers of a program of the kernels.
BLOCK = 256


class Distinct(NamedTuple):
    """The distinct rows among many.

    Attributes:
        rows: int64 [K], rising; once there are no more of them, any of them again.
        own: where each of the K has its row first, int64 [K].
        places: for each tensor of rows that was given, where its rows are among the K.
        ordered: all places, those of the first tensor first.
    """

    rows: Tensor
    own: Tensor
    places: tuple[Tensor, ...]
    ordered: Ordered


def distinct(given: Sequence[Tensor], num_rows: int, *, fused: bool = False) -> Distinct:
    """The rows of a table of ``num_rows`` that are in any of the tensors given, int64.

    Nobody waits to learn how many there are: there is room for as many as there can be.

    Args:
        fused: whether kernels are used. Behind the distinct rows stands then the first one again
            and again, so writing to all of these would be slow.

    Example:
        >>> found = distinct([torch.tensor([7, 3]), torch.tensor([7])], 100)
        >>> found.rows.tolist(), [each.tolist() for each in found.places]
        ([3, 7, 3], [[1, 0], [1]])
    """
    # Half as many passes on a GPU as of 64 bits.
    rising, order = torch.cat([each.flatten() for each in given]).int().sort(stable=True)
    find = _by_kernels if fused else _found
    rows, own, places, rank = find(rising, order, min(len(rising), num_rows))
    split = places.split([each.numel() for each in given])
    shaped = tuple(p.view(each.shape) for p, each in zip(split, given, strict=True))
    return Distinct(rows, own, shaped, Ordered(rank, order))


def _found(rising: Tensor, order: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and where each has its own, int64 [K]; places as they were given, int64, and rising,
    int32."""
    rank = torch.nn.functional.pad(rising.diff() != 0, (1, 0)).cumsum(0)
    # All again instead of the last one: what writes to one row at once has to wait for each other.
    own = torch.arange(room, device=rising.device) % (rank[-1] + 1)
    # The same number is written wherever two have the same place.
    rows = torch.zeros_like(rank).scatter_(0, rank, rising.long())[:room].index_select(0, own)
    return rows, own, torch.empty_like(rank).scatter_(0, order, rank), rank.int()


def _by_kernels(rising: Tensor, order: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`_found`, by two kernels and a sum."""
    from blossomrec.models.fused.kernels.distinct import distinct_kernel, new_numbers_kernel

    count, shape = len(rising), cast(Any, {"BLOCK": BLOCK})
    grid = (-(-count // BLOCK),)
    new = torch.empty_like(rising)
    new_numbers_kernel[grid](rising, new, count, **shape)
    rank, places = new.cumsum(0, dtype=torch.int32), torch.empty_like(order)
    rows, own = order.new_empty(2, room).unbind()
    distinct_kernel[grid](rising, order, rank, rows, own, places, count, room, **shape)
    return rows, own, places, rank
