"""Backbones, the attention they are compared with, and ``baselines``, simple recommenders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import ATTENTIONS, BACKBONES, lazily

if TYPE_CHECKING:
    from blossomrec.models.building import build_model
    from blossomrec.models.full import FullAttention
    from blossomrec.models.recurrent import RecurrentAttention, RecurrentState
    from blossomrec.models.scorer import Scorer
    from blossomrec.models.sequence import Encoded, SequenceModel
    from blossomrec.models.state import ModelState

__all__ = [
    "ATTENTIONS",
    "BACKBONES",
    "Encoded",
    "FullAttention",
    "ModelState",
    "RecurrentAttention",
    "RecurrentState",
    "Scorer",
    "SequenceModel",
    "build_model",
]

__getattr__ = lazily(
    __name__,
    {
        "Encoded": "blossomrec.models.sequence",
        "FullAttention": "blossomrec.models.full",
        "ModelState": "blossomrec.models.state",
        "RecurrentAttention": "blossomrec.models.recurrent",
        "RecurrentState": "blossomrec.models.recurrent",
        "Scorer": "blossomrec.models.scorer",
        "SequenceModel": "blossomrec.models.sequence",
        "build_model": "blossomrec.models.building",
    },
)
