"""Tables of what a model sees besides ids: times, the moment for which is recommended, content."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from benchmarks.tables.measured_lines import Line, read, table

TIMES = {
    "none": "",
    "gap": "gap",
    "rotary": "rotary by time",
    "gap+rotary": "gap, rotary by time",
    "gap+clock": "gap, clock",
}
CATEGORIES = "recall@10 by popularity of categories"


def features() -> str:
    """NDCG@10 of each form of input, and how much more it is than of ids alone."""
    found: dict[tuple[str, str, str], dict[int, Line]] = {}
    for line in read("features.jsonl"):
        if not line["cold_metrics"]:
            key = line["dataset"], line["attention"], _seen(line)
            found.setdefault(key, {})[line["seed"]] = line
    rows = []
    for (dataset, attention, seen), lines in sorted(found.items()):
        score = mean(line["metrics"]["ndcg@10"] for line in lines.values())
        alone = found.get((dataset, attention, "ids"), {})
        shared = [line["metrics"]["ndcg@10"] for seed, line in alone.items() if seed in lines]
        same = [lines[seed]["metrics"]["ndcg@10"] for seed in alone if seed in lines]
        gain = f"{mean(same) / mean(shared) - 1:+.1%}" if shared and seen != "ids" else ""
        rows.append([f"{dataset}, {attention}: {seen}", str(len(lines)), f"{score:.4f}", gain])
    return table(["log, attention: input", "seeds", "NDCG@10", "more than ids"], rows)


def cold_items() -> str:
    """Recall of targets that have no training event."""
    lines = {}
    for line in read("features.jsonl"):
        if line["cold_metrics"]:
            lines[line["dataset"], _seen(line), line.get("id_dropout", 0.1)] = line
    rows = []
    for (dataset, seen, dropout), line in sorted(lines.items()):
        cold, content = line["cold_metrics"], line["content"]
        among, by_categories = cold.get("recall@10 among cold items"), cold.get(CATEGORIES)
        rows.append(
            [
                f"{dataset}: {seen}" + (f", id dropout {dropout:g}" if content else ""),
                f"{line['metrics']['ndcg@10']:.4f}",
                f"{cold['targets']:,}",
                f"{cold['recall@10']:.4f}",
                "" if among is None else f"{among:.3f}",
                "" if by_categories is None else f"{by_categories:.3f}",
            ]
        )
    header = ["log: input", "NDCG@10 of all", "cold targets", "recall@10 among all"]
    return table([*header, "among cold", "by popularity of categories"], rows)


def _seen(line: Line) -> str:
    parts = [TIMES[line["time"]]]
    parts.append("moment of the request" if line["request_time"] else "")
    parts.append("content" if line["content"] else "")
    return ", ".join(filter(None, parts)) or "ids"


TABLES: dict[str, Callable[[], str]] = {"features": features, "cold-items": cold_items}
