"""The distinct items of packed histories, as a table that batches share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from blossomrec.data.batches import Batch


class DistinctItems:
    """Every (history, item) of a batch once, N of them, by history, then item.

    Attributes:
        history: number of the history, int64 [N].
        item: int64 [N].
        event: which of the N each event of the batch belongs to, int64 [T].
        age: events of the history after each event, int64 [T].
    """

    def __init__(self, batch: Batch, num_items: int):
        ends = batch.cu_seqlens.long()
        lengths = ends.diff()
        of = torch.arange(len(lengths), device=ends.device).repeat_interleave(lengths)
        self.age = ends[1:][of] - 1 - torch.arange(len(of), device=ends.device)
        keys, self.event = torch.unique(of * num_items + batch.items, return_inverse=True)
        self.history, self.item = keys // num_items, keys % num_items
        self.histories = len(lengths)

    def table(self, width: int, *columns: Tensor) -> Tensor:
        """Columns [N] as int32 [histories, width, len(columns)], -1 behind a history's items."""
        counts = self.history.bincount(minlength=self.histories)
        place = torch.arange(len(self.history), device=self.history.device)
        place -= (counts.cumsum(0) - counts)[self.history]
        table = counts.new_full((self.histories, width, len(columns)), -1, dtype=torch.int32)
        table[self.history, place] = torch.stack(columns, 1).int()
        return table
