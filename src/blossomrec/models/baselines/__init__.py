"""Recommenders without training by gradients: what a model has to beat.

They are fitted on the training events of a log: ``train_end`` [U] is the number of each user's
first events that may be used. Their tensors are buffers, so that they move between devices;
nothing in them has a gradient.
"""

from blossomrec.models.baselines.ease import Ease
from blossomrec.models.baselines.item_knn import ItemKNN
from blossomrec.models.baselines.personal import PersonalFrequency, PersonalRecency
from blossomrec.models.baselines.popularity import Popularity, RecentPopularity
from blossomrec.models.baselines.transitions import ItemTransitions

__all__ = [
    "Ease",
    "ItemKNN",
    "ItemTransitions",
    "PersonalFrequency",
    "PersonalRecency",
    "Popularity",
    "RecentPopularity",
]
