"""Backbones, the attention they are compared with, and simple baselines."""

from blossomrec.models.baselines import ItemTransitions, Popularity, RecentPopularity
from blossomrec.models.full import FullAttention
from blossomrec.models.scorer import Scorer
from blossomrec.models.sequence import Encoded, SequenceModel, build_model
from blossomrec.models.state import ModelState

__all__ = [
    "Encoded",
    "FullAttention",
    "ItemTransitions",
    "ModelState",
    "Popularity",
    "RecentPopularity",
    "Scorer",
    "SequenceModel",
    "build_model",
]
