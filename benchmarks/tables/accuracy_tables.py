"""Tables of accuracy on public logs, means over the seeds."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.tables import measured_lines
from benchmarks.tables.measured_lines import Line, read, table, trainings
from blossomrec.evaluation.significance import holm


def accuracy(ranking: str) -> str:
    """Metrics at 10 of every data set and model under one ranking, means over the seeds."""
    prefix = "" if ranking == "full" else f"{ranking}_"
    names = ("hr@10", "mrr@10", "ndcg@10")
    rows = [
        [
            f"{lines[0]['dataset']}, {lines[0]['max_len']}",
            lines[0]["model"],
            str(len(lines)),
            f"{mean(line['epochs'] for line in lines):.0f}",
            *(f"{mean(line['metrics'][prefix + name] for line in lines):.4f}" for name in names),
        ]
        for lines in trainings(ranking)
    ]
    header = [
        "data, longest history",
        "model",
        "seeds",
        "epochs",
        *(prefix + name for name in names),
    ]
    return table(header, rows)


def _studied(study: str = "") -> dict[tuple[str, str], list[Line]]:
    """Trainings of fusions side by side, or of another study, by data set and model."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in measured_lines.read("fusion.jsonl"):
        if line["ranking"] == "full" and line.get("study", "") == study:
            found.setdefault((line["dataset"], line["model"]), []).append(line)
    return found


def fusion(*, long: bool) -> str:
    """NDCG@10 of both fusions, or with own items, and tests against dense attention."""
    found = {key: lines for key, lines in _studied().items() if (lines[0]["max_len"] > 200) == long}
    return beside_dense(found)


def beside_dense(found: dict[tuple[str, str], list[Line]]) -> str:
    """Means over the seeds; p-values are those of the paired tests after Holm over the table."""
    tested = {
        key: line["paired"] for key, lines in found.items() for line in lines if "paired" in line
    }
    p_values = holm(np.array([test["p_value"] for test in tested.values()]))
    shown = {
        key: shown_test(test, p_value)
        for (key, test), p_value in zip(tested.items(), p_values, strict=True)
    }
    rows = [
        [
            f"{dataset}, {lines[0]['max_len']:,}",
            model,
            str(len(lines)),
            *(
                f"{mean(line[part]['ndcg@10'] for line in lines):.4f}"
                for part in ("validation", "metrics")
            ),
            *shown.get((dataset, model), ("", "")),
        ]
        for (dataset, model), lines in sorted(found.items(), key=lambda one: _order(*one[0]))
    ]
    header = ["data, longest history", "model", "seeds", "validation", "test"]
    return table([*header, "difference to dense", "p, Holm"], rows)


def training_options() -> str:
    """NDCG@10 of one seed by what was changed in training."""
    rows = [
        [
            f"{line['dataset']}, {line['max_len']:,}: {line['model']}",
            line["changed"] or "as it is",
            *(f"{line[part]['ndcg@10']:.4f}" for part in ("validation", "metrics")),
            str(line["best_epoch"]),
        ]
        for line in sorted(read("training.jsonl"), key=_changed)
    ]
    return table(
        ["data, longest history: model", "changed", "validation", "test", "best epoch"], rows
    )


def _changed(line: Line) -> tuple[str, str, bool, str]:
    """By data set and model, what is not changed first."""
    return line["dataset"], line["model"], bool(line["changed"]), line["changed"]


def _order(dataset: str, model: str) -> tuple[str, bool, bool, str]:
    """By data set and backbone, dense attention first."""
    return dataset, "BERT4Rec" in model, "SASRec" not in model and model != "BERT4Rec", model


def shown_test(test: dict[str, Any], p_value: float) -> tuple[str, str]:
    """Difference with its interval, and the p-value, of a paired test, in words."""
    words = "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return f"{test['difference']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f})", words


def lengths() -> str:
    """NDCG@10 among all items over the longest history that a model sees."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for line in read("lengths.jsonl"):
        if line["ranking"] == "full":
            key = line["dataset"], line["model"]
            found.setdefault(key, {})[line["max_len"]] = f"{line['metrics']['ndcg@10']:.4f}"
    longest = sorted({length for values in found.values() for length in values})
    rows = [
        [data, model, *(values.get(length, "") for length in longest)]
        for (data, model), values in found.items()
    ]
    return table(["data", "model", *(f"{length:,}" for length in longest)], rows)


TABLES: dict[str, Callable[[], str]] = {
    "accuracy-full": lambda: accuracy("full"),
    "accuracy-uni100": lambda: accuracy("uni100"),
    "fusion": lambda: fusion(long=False),
    "own-items": lambda: fusion(long=True),
    "near-bias": lambda: beside_dense(_studied("near bias")),
    "training-options": training_options,
    "lengths": lengths,
}
