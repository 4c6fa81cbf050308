"""Backbones, the attention they are compared with, and simple baselines."""

from blossomrec.models.baselines import ItemTransitions, Popularity, RecentPopularity
from blossomrec.models.full import FullAttention
from blossomrec.models.scorer import Scorer
from blossomrec.models.sequence import Encoded, SequenceModel, build_model

__all__ = [
    "Encoded",
    "FullAttention",
    "ItemTransitions",
    "Popularity",
    "RecentPopularity",
    "Scorer",
    "SequenceModel",
    "build_model",
]
