"""Backbones, the attention they are compared with, and ``baselines``, simple recommenders."""

from blossomrec.models.full import FullAttention
from blossomrec.models.scorer import Scorer
from blossomrec.models.sequence import Encoded, SequenceModel, build_model
from blossomrec.models.state import ModelState

__all__ = [
    "Encoded",
    "FullAttention",
    "ModelState",
    "Scorer",
    "SequenceModel",
    "build_model",
]
