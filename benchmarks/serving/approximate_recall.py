"""Time and recall of looking for the best ten of a million items, over the lists looked into.

    python -m benchmarks approximate --out results/serving.jsonl

Embeddings of 64 numbers in 20,000 clusters of 50 stand for a trained catalogue, queries lie near
clusters; how much a trained one loses is measured where it is served (``blossomrec_ann_found`` over
``blossomrec_ann_wanted``). One thread. ``probes`` 0 ranks all items.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import append_result, provenance
from benchmarks.serving.load import Outcome
from blossomrec.config import ModelConfig
from blossomrec.evaluation.scoring import Queries
from blossomrec.models import build_model
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.version.approximate import ApproximateRanking
from blossomrec.serving.version.ranking import Best, Choice, Ranking

CLUSTER, WIDTH, REQUESTS, K, VIEWED = 50, 64, 200, 10, 500
PROBES = (4, 16, 64, 128)


def catalogue(items: int) -> tuple[Any, torch.Tensor]:
    """A model whose embeddings lie in clusters, and queries."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(items // CLUSTER, WIDTH, generator=generator)
    model = build_model(ModelConfig(hidden_size=WIDTH), items).eval()
    noise = torch.randn(items, WIDTH, generator=generator)
    with torch.no_grad():
        model.item_embeddings.weight.copy_(centres.repeat_interleave(CLUSTER, 0) + noise / 2)
    near = centres[torch.randint(len(centres), (REQUESTS,), generator=generator)]
    return model, near + torch.randn(REQUESTS, WIDTH, generator=generator) / 2


def measure(ranking: Ranking, queries: torch.Tensor, items: int) -> tuple[Outcome, list[Best]]:
    """Requests one at a time, each with items that have been viewed."""
    rng, outcome, found = np.random.default_rng(1), Outcome(), []
    for query in queries.split(1):
        choice = Choice(K, [rng.integers(0, items, VIEWED)])
        start = time.perf_counter()
        found += ranking.best(Queries(query), [choice])
        outcome.seconds.append(time.perf_counter() - start)
    outcome.duration = sum(outcome.seconds)
    return outcome, found


@torch.inference_mode()
def measure_approximate(*, items: int = 1_000_000, out: Path | None = None) -> None:
    """Time and recall of looking for the best ten of a million items, over the lists looked into.

    Args:
        items: how large the catalogue is
        out: JSONL file to which a line for each number of lists is appended; none without it
    """
    torch.set_num_threads(1)
    model, queries = catalogue(items)
    exact: list[Best] = []
    for probes in (0, *PROBES):
        ranking = ApproximateRanking(model, probes, Metrics()) if probes else Ranking(model)
        outcome, found = measure(ranking, queries, items)
        exact = exact or found
        hits = [len(np.intersect1d(a[0], b[0])) for a, b in zip(found, exact, strict=True)]
        recall = round(float(np.mean(hits)) / K, 4)
        line = {
            "scenario": "rank",
            "users": REQUESTS,
            "history": VIEWED,
            "rate": None,
            **outcome.measures(),
            "items": items,
            "probes": probes,
            "recall": recall,
            **provenance(),
        }
        if out is not None:
            append_result(out, line)
        print(f"{probes:>4} probes: recall {recall:.3f}, {line['p50_ms']} ms", flush=True)
