"""The items of a model whose table ranks share: each has some rows, and all need any."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blossomrec.evaluation.scoring import Queries
from blossomrec.ranks import Ranks

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.models.sequence import SequenceModel


class SharedItems:
    """Vectors of items that lie on several ranks; all call every method in the same order.

    Args:
        model: which has this rank's part of the item table, in evaluation mode on ``device``.
        ranks: who share it.
        device: where batches go.

    Attributes:
        num_rows: of the item table, with those behind the catalogue.
    """

    def __init__(self, model: SequenceModel, ranks: Ranks, device: torch.device):
        self._model, self._ranks, self._device = model, ranks, device
        self.num_rows = model.num_items + model.extra_rows

    @cached_property
    def vectors(self) -> Tensor:
        """Vectors of the rows of the item table that this rank has."""
        return self._model.item_vectors()

    def fetch(self, rows: Tensor) -> Tensor:
        """Vectors of any rows of the item table, int64 [K], each rank its own: [K, D]."""
        return self._ranks.fetch(self.vectors, self.num_rows, rows)

    def queries(self, batch: Batch | None) -> Queries:
        """What is to be known of the histories of a batch, which is on the device.

        Args:
            batch: of this rank; None where it has none, and takes part in what others need.
        """
        if batch is None:
            self.fetch(torch.empty(0, dtype=torch.int64, device=self._device))
            return Queries(torch.empty(0, self.vectors.shape[1], device=self._device))
        items = batch.items.unique()
        # What stands behind the catalogue, such as a mask, is behind these items.
        more = torch.arange(self._model.num_items, self.num_rows, device=self._device)
        with self._model.on_rows(self.fetch(torch.cat((items, more)))):
            places = torch.searchsorted(items, batch.items)
            queries = Queries.of(self._model, replace(batch, items=places))
        if queries.own is None:
            return queries
        return replace(queries, own=replace(queries.own, items=items[queries.own.items]))
