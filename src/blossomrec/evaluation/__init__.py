"""Protocols, ranking, metrics, slices of users and targets, significance and storage."""

from blossomrec.data.split import resolve_filter_seen
from blossomrec.evaluation.evaluate import RankingOptions, evaluate
from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.evaluation.own_metrics import Asked
from blossomrec.evaluation.protocol import EvaluationProtocol
from blossomrec.evaluation.significance import (
    PairedTest,
    compare,
    compare_kinds,
    compare_segments,
)

__all__ = [
    "Asked",
    "Evaluation",
    "EvaluationProtocol",
    "PairedTest",
    "RankingOptions",
    "compare",
    "compare_kinds",
    "compare_segments",
    "evaluate",
    "resolve_filter_seen",
]
