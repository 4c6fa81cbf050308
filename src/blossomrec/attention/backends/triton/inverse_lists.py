"""Which queries selected each block: sorted on the device, without a look at lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InverseLists:
    """Which queries selected each block: the selection seen from the side of the keys.

    There is a list for each tile of one block and each key/value head, numbered ``tile * G +
    group``. Its first ``chunk`` entries are the work of the block's own program; the rest, if any,
    is cut into chunks that have a program each, for some blocks are chosen by nearly everyone.

    Attributes:
        order: int64 [T * G * n], places in the flattened selection, list after list, each rising.
        starts: int32 [lists + 1], where in ``order`` each list starts and the last one ends.
        chunk_starts: int32 [lists + 1], likewise for the chunks beyond the first.
        owners: int32 [chunks], the list of each such chunk, ``lists`` where there is none.
    """

    order: Tensor
    starts: Tensor
    chunk_starts: Tensor
    owners: Tensor

    @staticmethod
    def of(lists: Tensor, count: int, chunk: int) -> InverseLists:
        """``lists``: int32 [T, G, n], the list of each choice, ``count`` where there is none."""
        numbers, order = lists.flatten().sort(stable=True)
        bounds = torch.arange(count + 1, device=lists.device, dtype=torch.int32)
        starts = torch.searchsorted(numbers, bounds, out_int32=True)
        beyond = ((starts.diff() - 1) // chunk).clamp(min=0)
        chunk_starts = torch.nn.functional.pad(beyond.cumsum(0, dtype=torch.int32), (1, 0))
        places = torch.arange(len(numbers) // chunk, device=lists.device, dtype=torch.int32)
        owners = torch.searchsorted(chunk_starts[1:], places, right=True, out_int32=True)
        return InverseLists(order, starts, chunk_starts, owners)
