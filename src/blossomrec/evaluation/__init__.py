"""Protocols, ranking, metrics, slices by history length, significance and storage."""

from blossomrec.evaluation.evaluate import RankingOptions, evaluate, resolve_filter_seen
from blossomrec.evaluation.evaluation import Evaluation, EvaluationProtocol
from blossomrec.evaluation.significance import PairedTest, compare

__all__ = [
    "Evaluation",
    "EvaluationProtocol",
    "PairedTest",
    "RankingOptions",
    "compare",
    "evaluate",
    "resolve_filter_seen",
]
