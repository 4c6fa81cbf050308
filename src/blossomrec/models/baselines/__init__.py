"""Recommenders without training by gradients: what a model has to beat.

They are fitted on the training events of a log: ``train_end`` [U] is the number of each user's
first events that may be used. Their tensors are buffers, so that they move between devices;
nothing in them has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import Registry, lazily

if TYPE_CHECKING:
    from blossomrec.models.baselines.base import Baseline, Popularity, RecentPopularity
    from blossomrec.models.baselines.ease import Ease
    from blossomrec.models.baselines.neighbours import ItemKNN, ItemTransitions
    from blossomrec.models.baselines.personal import PersonalFrequency, PersonalRecency

BASELINES: Registry[type[Baseline]] = Registry(
    "baseline",
    "blossomrec.baselines",
    {
        "popularity": "blossomrec.models.baselines.base:Popularity",
        "recent-popularity": "blossomrec.models.baselines.base:RecentPopularity",
        "personal-frequency": "blossomrec.models.baselines.personal:PersonalFrequency",
        "personal-recency": "blossomrec.models.baselines.personal:PersonalRecency",
        "transitions": "blossomrec.models.baselines.neighbours:ItemTransitions",
        "item-knn": "blossomrec.models.baselines.neighbours:ItemKNN",
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
        "ItemKNN": "blossomrec.models.baselines.neighbours",
        "ItemTransitions": "blossomrec.models.baselines.neighbours",
        "PersonalFrequency": "blossomrec.models.baselines.personal",
        "PersonalRecency": "blossomrec.models.baselines.personal",
        "Popularity": "blossomrec.models.baselines.base",
        "RecentPopularity": "blossomrec.models.baselines.base",
    },
)
