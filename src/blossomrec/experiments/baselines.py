"""The baselines by name: what is evaluated without a run."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.log import EventLog
    from blossomrec.models.scorer import Scorer

# Largest catalogue for which EASE is fitted unasked: beyond, it takes minutes and gigabytes.
DENSE_ITEMS = 5_000


@dataclass(frozen=True)
class Baseline:
    """A recommender that is fitted on training events by counting.

    Attributes:
        place: ``module:class``, imported when it is fitted.
        own_items: recommends what stands in the history.
        most_items: largest catalogue for which it is measured unasked.
    """

    place: str
    own_items: bool = False
    most_items: float = float("inf")

    def fit(self, log: EventLog, train_end: np.ndarray, **options: Any) -> Scorer:
        """Fit it on the first ``train_end`` [U] events of each user."""
        module, _, name = self.place.partition(":")
        kind = getattr(importlib.import_module(f"blossomrec.models.baselines.{module}"), name)
        return kind.fit(log, train_end, **options)

    def suits(self, log: EventLog, *, filter_seen: bool) -> bool:
        """Whether it is worth measuring beside others."""
        return log.num_items <= self.most_items and not (self.own_items and filter_seen)


BASELINES = {
    "popularity": Baseline("popularity:Popularity"),
    "recent-popularity": Baseline("popularity:RecentPopularity"),
    "personal-frequency": Baseline("personal:PersonalFrequency", own_items=True),
    "personal-recency": Baseline("personal:PersonalRecency", own_items=True),
    "transitions": Baseline("transitions:ItemTransitions"),
    "item-knn": Baseline("item_knn:ItemKNN"),
    "ease": Baseline("ease:Ease", most_items=DENSE_ITEMS),
}
