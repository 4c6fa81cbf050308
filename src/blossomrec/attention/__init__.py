"""Blossom attention: the operation, its implementations and the layer. Imports torch only."""

from blossomrec.attention.api import blossom_attention
from blossomrec.attention.module import AttentionOutput, BlossomAttention

__all__ = ["AttentionOutput", "BlossomAttention", "blossom_attention"]
