"""What the paper says of Blossom attention, beside what was measured here."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import mean, variance

from benchmarks.speed.bench_options import DEFAULT, PUBLISHED, Layout
from benchmarks.tables import reproduced_tables, speed_tables
from benchmarks.tables.measured_lines import Line, table
from benchmarks.tables.speed_tables import layout

DATASETS = ("ml-1m", "gowalla", "amazon-beauty", "amazon-video-games")
# A model and another beside it: by default and as published, and the company of the paper.
PAIRS = (
    ("SASRec", "BlossomRec"),
    ("BERT4Rec", "BERT4Rec-Blossom"),
    ("SASRec", "BlossomRec (as published)"),
    ("SASRec", "SASRec (linrec)"),
    ("SASRec", "Mamba4Rec"),
)
COSTS = {
    "training, MiB": "peak_mib",
    "inference, MiB": "inference_peak_mib",
    "training step, ms": "forward_backward_ms",
    "inference, ms": "forward_ms",
}


def accuracy() -> str:
    """Change of NDCG@10 among all items from one model to another, on the data of the paper.

    Means over seeds, and the standard error of the change where each has several.
    """
    found = {
        (dataset, model): [line["metrics"]["ndcg@10"] for line in lines]
        for (dataset, _, model), lines in reproduced_tables.trainings().items()
        if dataset in DATASETS
    }
    rows = []
    for first, second in PAIRS:
        pairs = [(found.get((data, first)), found.get((data, second))) for data in DATASETS]
        rows.append([f"{second} to {first}", *(_change(*pair) for pair in pairs)])
    return table(["NDCG@10 of", *DATASETS], rows)


def _change(first: list[float] | None, second: list[float] | None) -> str:
    """Change from one mean to the other in per cent."""
    if not first or not second:
        return ""
    change = f"{100 * (mean(second) / mean(first) - 1):+.1f}"
    if min(len(first), len(second)) > 1:
        error = math.sqrt(sum(variance(values) / len(values) for values in (first, second)))
        change += f" ± {100 * error / mean(first):.1f}"
    return f"{change} %"


def cost() -> str:
    """Two layers with Blossom attention beside dense attention that keeps its scores, and fused;
    and Blossom attention as models have it by default, where that was measured.
    """
    rows = []
    for gpu in (True, False):
        lines = speed_tables.lines("encoder", gpu)
        for length in sorted({line["length"] for line in lines if line["impl"] == "naive"}):
            given = [line for line in lines if line["length"] == length]
            of = (
                (("naive",), DEFAULT),
                (("flash", "dense"), PUBLISHED),
                (("cuda", "cpu"), PUBLISHED),
            )
            stand = [line for each in of if (line := _one(given, *each)) is not None]
            if len(stand) < len(of):
                continue  # measured again in part
            if default := _one(given, ("cuda-union", "cpu-union"), DEFAULT):
                stand.append(default)
            where = "GPU" if gpu else "CPU"
            for text, field in COSTS.items():
                values = [line[field] for line in stand]
                times = [f"{value / values[2]:.1f}" for value in values[:2]]
                shown = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values]
                row = [f"{where}, {length:,}, {text}", *shown[:3], *times, *(shown[3:] or [""])]
                rows.append(row)
    header = ["device, length", "all scores kept", "fused", "Blossom"]
    return table([*header, "all scores / Blossom", "fused / Blossom", "default"], rows)


def growth() -> str:
    """Powers of the length with which the time of a history grows, forward and backward."""
    times: dict[str, dict[int, float]] = {}
    for line in speed_tables.beside_cudnn():
        if line["impl"] in ("cudnn", "cuda") and layout(line) == PUBLISHED:
            found = times.setdefault(speed_tables.name(line), {})
            found[line["length"]] = line["forward_backward_ms"]
    ways = sorted(times)
    rows = []
    for low, high in pairwise(sorted(times[ways[0]])):
        # All have the same number of events: a history as long again has half as many beside it.
        powers = [
            1 + math.log(times[way][high] / times[way][low]) / math.log(high / low) for way in ways
        ]
        rows.append([f"{low:,} to {high:,}", *(f"{power:.2f}" for power in powers)])
    return table(["length", *ways], rows)


def _one(lines: list[Line], impls: tuple[str, ...], heads: Layout) -> Line | None:
    """That of an attention which stands beside the others, replayed as a graph where it can be;
    None where it was not measured.
    """
    return max(
        (
            line
            for line in lines
            if line["impl"] in impls
            and line["compress"] in ("none", "mlp")
            and layout(line) == heads
            and line["lessons"] == (line["compress"] == "mlp")
        ),
        key=lambda line: line["graph"],
        default=None,
    )


TABLES: dict[str, Callable[[], str]] = {
    "claims-accuracy": accuracy,
    "claims-cost": cost,
    "claims-growth": growth,
}
