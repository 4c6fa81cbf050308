"""Protocols, ranking, metrics, slices by length and kind, significance and storage."""

from blossomrec.data.split import resolve_filter_seen
from blossomrec.evaluation.evaluate import RankingOptions, evaluate
from blossomrec.evaluation.evaluation import Evaluation, EvaluationProtocol
from blossomrec.evaluation.significance import PairedTest, compare, compare_kinds

__all__ = [
    "Evaluation",
    "EvaluationProtocol",
    "PairedTest",
    "RankingOptions",
    "compare",
    "compare_kinds",
    "evaluate",
    "resolve_filter_seen",
]
