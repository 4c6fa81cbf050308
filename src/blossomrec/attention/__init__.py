"""Blossom attention: the operation, its implementations and the layer. Imports torch only."""

from blossomrec.attention.api import blossom_attention
from blossomrec.attention.layer import AttentionOutput, BlossomAttention
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state import AttentionState, PagedStates

__all__ = [
    "AttentionOutput",
    "AttentionState",
    "BlossomAttention",
    "BlossomSpec",
    "PagedStates",
    "blossom_attention",
]
