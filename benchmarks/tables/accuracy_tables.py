"""Tables of accuracy on public logs, means over the seeds."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from benchmarks.tables.measured_lines import read, table, trainings


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


def accuracy_in_short() -> str:
    """NDCG@10 among all items of the models side by side, means over the seeds."""
    models = ("SASRec", "BlossomRec", "BlossomRec-8kv-long", "BERT4Rec", "BERT4Rec-Blossom")
    found: dict[str, dict[str, str]] = {}
    for lines in trainings("full"):
        data = f"{lines[0]['dataset']}, {lines[0]['max_len']}"
        value = mean(line["metrics"]["ndcg@10"] for line in lines)
        found.setdefault(data, {})[lines[0]["model"]] = f"{value:.4f}"
    rows = [[data, *(values.get(model, "") for model in models)] for data, values in found.items()]
    return table(["data, longest history", *models], rows)


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
    "accuracy-short": accuracy_in_short,
    "lengths": lengths,
}
