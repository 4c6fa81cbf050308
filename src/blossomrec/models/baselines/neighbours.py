"""Items weighed by their neighbours: what stands near a history's last items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from blossomrec.errors import ConfigError
from blossomrec.models.baselines.base import Baseline

if TYPE_CHECKING:
    from blossomrec.data.batches import Batch


class ItemNeighbours(Baseline):
    """Scores an item by its weight beside each of a history's last items.

    A history's last event adds the weights of its item's neighbours in full, each earlier one
    ``decay`` times as much as the next. Items that are nobody's neighbour are ordered by
    popularity, below all others.

    Args:
        neighbours: sparse [I, I], from an item (row) to its neighbours (column), weights above 0.
        popularity: [I], number of training events.
        recent: last events of a history that are used.
        decay: weight of an event relative to the one after it.

    Raises:
        ConfigError: ``recent`` is below 1, or ``decay`` is not above 0 and at most 1.
    """

    keys: Tensor
    weights: Tensor
    popularity: Tensor

    def __init__(
        self,
        neighbours: scipy.sparse.csr_array,
        popularity: np.ndarray,
        *,
        recent: int,
        decay: float,
    ):
        super().__init__()
        if recent < 1:
            raise ConfigError(f"recent is {recent}: at least 1 event of a history must be used")
        if not 0 < decay <= 1:
            raise ConfigError(f"decay is {decay}: it must be above 0 and at most 1")
        self.num_items, self.max_len, self.decay = len(popularity), recent, decay
        entries = neighbours.tocoo()
        # Row and column in one rising number: a part of a row is then found by two searches.
        keys = entries.row.astype(np.int64) * self.num_items + entries.col
        order = keys.argsort()
        self.register_buffer("keys", torch.from_numpy(keys[order]))
        weights = torch.as_tensor(entries.data[order], dtype=torch.float32)
        self.register_buffer("weights", weights)
        # Half of the smallest score that a neighbour can give is shared out by popularity.
        least = weights.min().item() * decay ** (recent - 1) if len(weights) else 1.0
        share = torch.as_tensor(popularity, dtype=torch.float32) / max(popularity.max(), 1)
        self.register_buffer("popularity", share * least / 2)

    def queries(self, batch: Batch) -> Tensor:
        """The last events, latest first, int64 [B, recent]; -1 where there are fewer."""
        back = torch.arange(1, self.max_len + 1, device=batch.items.device)
        starts, ends = batch.cu_seqlens[:-1, None].long(), batch.cu_seqlens[1:, None].long()
        rows = ends - back
        return torch.where(rows >= starts, batch.items[rows.clamp(min=0)], -1)

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start]."""
        width = stop - start
        scores = self.popularity[start:stop].repeat(len(queries), 1)
        # One event at a time no place is written twice, so that sums have one order everywhere.
        for age, items in enumerate(queries.unbind(1)):
            first = torch.searchsorted(self.keys, items * self.num_items + start)
            last = torch.searchsorted(self.keys, items * self.num_items + stop)
            # No event, -1, finds nothing: every key is at least 0.
            counts = last - first
            history = torch.arange(len(items), device=items.device).repeat_interleave(counts)
            entry = torch.arange(len(history), device=items.device)
            entry += (first - (counts.cumsum(0) - counts))[history]
            places = history * width + self.keys[entry] % self.num_items - start
            scores.view(-1).index_add_(0, places, self.weights[entry] * self.decay**age)
        return scores
