"""The ranking of a catalogue as a graph: vectors to the best items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseRanking(nn.Module):
    """The ``k`` items whose vectors have the largest products with a vector.

    Args:
        item_vectors: [I, D].
        k: at most I.
    """

    item_vectors: Tensor

    def __init__(self, item_vectors: Tensor, k: int):
        super().__init__()
        self.k = k
        self.register_buffer("item_vectors", item_vectors)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of items, int64 [B, k], best first, and their scores, float32 [B, k].

        Args:
            tensors: vectors, [B, D], and int64 [B, E], rows that are not ranked, -1 for none. Where
                fewer than ``k`` items are left, the scores at the end are -inf.
        """
        vectors, left_out = tensors
        count = len(self.item_vectors)
        scores = F.linear(vectors, self.item_vectors)
        # One column more takes what leaves nothing out.
        rows = torch.where(left_out < 0, count, left_out)
        scores = F.pad(scores, (0, 1)).scatter(1, rows, -torch.inf)[:, :count]
        best = scores.topk(self.k)
        return best.indices, best.values
