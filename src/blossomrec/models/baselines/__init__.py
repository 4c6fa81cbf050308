"""Recommenders without training by gradients: what a model has to beat.

They are fitted on the training events of a log: ``train_end`` [U] is the number of each user's
first events that may be used. Their tensors are buffers, so that they move between devices;
nothing in them has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import Registry, lazily

if TYPE_CHECKING:
    from blossomrec.models.baselines.base import Baseline
    from blossomrec.models.baselines.ease import Ease
    from blossomrec.models.baselines.item_knn import ItemKNN
    from blossomrec.models.baselines.personal import PersonalFrequency, PersonalRecency
    from blossomrec.models.baselines.popularity import Popularity, RecentPopularity
    from blossomrec.models.baselines.transitions import ItemTransitions

BASELINES: Registry[type[Baseline]] = Registry(
    "baseline",
    "blossomrec.baselines",
    {
        "popularity": "blossomrec.models.baselines.popularity:Popularity",
        "recent-popularity": "blossomrec.models.baselines.popularity:RecentPopularity",
        "personal-frequency": "blossomrec.models.baselines.personal:PersonalFrequency",
        "personal-recency": "blossomrec.models.baselines.personal:PersonalRecency",
        "transitions": "blossomrec.models.baselines.transitions:ItemTransitions",
        "item-knn": "blossomrec.models.baselines.item_knn:ItemKNN",
        "ease": "blossomrec.models.baselines.ease:Ease",
    },
    base="blossomrec.models.baselines.base:Baseline",
)

__all__ = [
    "BASELINES",
    "Baseline",
    "Ease",
    "ItemKNN",
    "ItemTransitions",
    "PersonalFrequency",
    "PersonalRecency",
    "Popularity",
    "RecentPopularity",
]

__getattr__ = lazily(
    __name__,
    {
        "Baseline": "blossomrec.models.baselines.base",
        "Ease": "blossomrec.models.baselines.ease",
        "ItemKNN": "blossomrec.models.baselines.item_knn",
        "ItemTransitions": "blossomrec.models.baselines.transitions",
        "PersonalFrequency": "blossomrec.models.baselines.personal",
        "PersonalRecency": "blossomrec.models.baselines.personal",
        "Popularity": "blossomrec.models.baselines.popularity",
        "RecentPopularity": "blossomrec.models.baselines.popularity",
    },
)
