"""Rules for what is recommended: filters and boosts by a small language, limits, re-rankers."""

from blossomrec.registry import RERANKERS
from blossomrec.rules.reranking import Candidates, Reranker
from blossomrec.rules.rules import Rules

__all__ = ["RERANKERS", "Candidates", "Reranker", "Rules"]
