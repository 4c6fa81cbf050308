"""Blossom attention: the operation, its implementations and the layer. Imports torch only."""

from blossomrec.attention.api import blossom_attention
from blossomrec.attention.module import AttentionOutput, BlossomAttention
from blossomrec.attention.paged import PagedStates
from blossomrec.attention.state import AttentionState

__all__ = [
    "AttentionOutput",
    "AttentionState",
    "BlossomAttention",
    "PagedStates",
    "blossom_attention",
]
