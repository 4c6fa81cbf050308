"""Scorers whose scores are known, and rankings written as plain loops to hold them against."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import polars as pl
import torch

from blossomrec.data.log import EventLog


def prepared(histories: list[list[int]]) -> EventLog:
    """A log of these histories; its rows stand in another order than the numbers given."""
    events = [
        (user, item, time)
        for user, items in enumerate(histories)
        for time, item in enumerate(items)
    ]
    columns = ["user_id", "item_id", "timestamp"]
    return EventLog.prepare(pl.DataFrame(events, schema=columns, orient="row"))


class TableScorer:
    """Scores an item by a table [I, I] of the history's last item; exact, so ties are ties."""

    max_len, inputs = 4, ("items",)

    def __init__(self, table: np.ndarray):
        self.num_items = len(table)
        self.table = torch.from_numpy(table.astype(np.float32))

    def queries(self, batch):
        return batch.items[batch.last_rows]

    def scores(self, queries, start, stop):
        return self.table[queries, start:stop]


class DotScorer(torch.nn.Module):
    """Scores by the product of item vectors with the mean vector of the history."""

    max_len, inputs = 50, ("items",)

    def __init__(self, num_items: int, size: int = 16):
        super().__init__()
        self.num_items = num_items
        generator = torch.Generator().manual_seed(3)
        self.vectors = torch.nn.Parameter(torch.randn(num_items, size, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)

    def queries(self, batch):
        ends = batch.cu_seqlens.tolist()
        means = [self.vectors[batch.items[a:b]].mean(0) for a, b in pairwise(ends)]
        return self.dropout(torch.stack(means))

    def scores(self, queries, start, stop):
        return queries @ self.vectors[start:stop].T


def ranked(scores: np.ndarray, target: int, candidates: set[int]) -> int:
    """0-based rank of the target, ties against it."""
    return sum(scores[item] >= scores[target] for item in candidates)


def full_ranks(log, cases, table: np.ndarray, filter_seen: bool) -> list[int]:
    """Rank of every distinct target, in order of row within a case."""
    ranks = []
    for user, start, end in zip(cases.users, cases.history_end, cases.target_end, strict=True):
        history = log.history(int(user)).items.tolist()
        targets = set(history[start:end])
        candidates = set(range(log.num_items)) - targets
        candidates -= set(history[:start]) if filter_seen else set()
        ranks += [ranked(table[history[start - 1]], item, candidates) for item in sorted(targets)]
    return ranks


def recommended(scores: np.ndarray, left_out: set[int], k: int) -> list[int]:
    """The k best item rows, lower rows first among equal scores."""
    kept = sorted(set(range(len(scores))) - left_out, key=lambda item: (-scores[item], item))
    return kept[:k]


def metrics_of_list(relevant: list[bool], k: int, num_targets: int) -> dict[str, float]:
    """Metrics of one list, best item first, in which ``relevant`` marks the targets."""
    hits = [place for place, hit in enumerate(relevant[:k]) if hit]
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, num_targets)))
    return {
        "hr": float(bool(hits)),
        "recall": len(hits) / num_targets,
        "ndcg": sum(1 / math.log2(place + 2) for place in hits) / ideal,
        "mrr": 1 / (hits[0] + 1) if hits else 0.0,
    }
