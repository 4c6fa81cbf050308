"""Validation by several ranks: each ranks the targets of a part of the cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.data.windows import boundaries
from blossomrec.evaluation import Evaluation, evaluate, metrics
from blossomrec.evaluation.candidates import popularity_percentiles
from blossomrec.ranks import Ranks
from blossomrec.training.validation import Validation


class SharedValidation(Validation):
    """As :class:`Validation`, with the same numbers as those of a rank alone.

    Meanwhile every rank holds the vectors of all items.

    Args:
        given: as of :class:`Validation`.
        ranks: who validate together.
    """

    def __init__(self, *given: Any, ranks: Ranks):
        super().__init__(*given)
        self.ranks = ranks

    def __call__(self) -> dict[str, float]:
        self.model.eval()
        own = self.ranks.rows(self.count)
        found = None
        with torch.inference_mode(), self.fabric.autocast(), self.model.on_rows(self._vectors()):
            if len(own):
                found = evaluate(
                    self.model,
                    self.log,
                    self.cases.take(np.arange(own.start, own.stop)),
                    self.options,
                    device=self.fabric.device,
                    tokens_per_batch=self.tokens_per_batch,
                )
        arrays = None if found is None else (found.offsets, found.ranks, found.top)
        return self._joined(found, self.ranks.gathered(arrays))

    def _vectors(self) -> Tensor:
        """Vectors of all rows of the item table."""
        held = self.model.item_vectors()
        num_rows = self.model.num_items + self.model.extra_rows
        each = len(self.ranks.rows(num_rows, 0))
        return self.ranks.gather(pad(held, (0, 0, 0, each - len(held))))[:num_rows]

    def _joined(self, own: Evaluation | None, parts: list[Any]) -> dict[str, float]:
        """Metrics of all cases, from what ranks found for theirs."""
        offsets, ranks, top = zip(*filter(None, parts), strict=True)
        whole = np.concatenate(top)
        ks = sorted(self.options.ks)
        values = metrics.popularity(whole, popularity_percentiles(self.log, self.cases), ks)
        found = None
        if own is not None:
            found = replace(
                own,
                users=self.cases.users,
                lengths=self.cases.history_end,
                offsets=boundaries(np.concatenate([np.diff(each) for each in offsets])),
                ranks=np.concatenate(ranks),
                top=whole,
                popularity=np.stack(list(values.values()), 1),
                kinds=None,
                of_kinds=None,
            ).metrics
        # A rank without a case has no protocol; there is one with some.
        return next(each for each in self.ranks.gathered(found) if each is not None)
