"""Which rows of a table are needed, each once: on the device, in tensors of a size known before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Distinct(NamedTuple):
    """The distinct rows among many.

    Attributes:
        rows: int64 [K], rising; once there are no more of them, all over again.
        own: where each of the K has its row first, int64 [K].
        places: for each tensor of rows that was given, where its rows are among the K.
    """

    rows: Tensor
    own: Tensor
    places: tuple[Tensor, ...]


def distinct(given: Sequence[Tensor], num_rows: int) -> Distinct:
    """The rows of a table of ``num_rows`` that are in any of the tensors given, int64.

    Nobody waits to learn how many there are: there is room for as many as there can be.

    Example:
        >>> found = distinct([torch.tensor([7, 3]), torch.tensor([7])], 100)
        >>> found.rows.tolist(), [each.tolist() for each in found.places]
        ([3, 7, 3], [[1, 0], [1]])
    """
    # Half as many passes on a GPU as of 64 bits.
    rising, order = torch.cat([each.flatten() for each in given]).int().sort()
    new = rising.diff() != 0
    rank = torch.nn.functional.pad(new, (1, 0)).cumsum(0)
    room = min(len(rising), num_rows)
    # All again instead of the last one: what writes to one row at once has to wait for each other.
    own = torch.arange(room, device=rising.device) % (rank[-1] + 1)
    # The same number is written wherever two have the same place.
    rows = torch.zeros_like(rank).scatter_(0, rank, rising.long())[:room].index_select(0, own)
    places = torch.empty_like(rank).scatter_(0, order, rank).split([each.numel() for each in given])
    shaped = tuple(p.view(each.shape) for p, each in zip(places, given, strict=True))
    return Distinct(rows, own, shaped)
