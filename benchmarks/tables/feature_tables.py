"""Tables of what a model sees besides ids: times, moments, content, kinds; and of wanted kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import mean

from benchmarks.tables.measured_lines import Line, read, table
from blossomrec.data.split import TARGETS

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
    found = _by_seed(
        (
            line
            for line in read("features.jsonl")
            if not (line["cold_metrics"] or _wanted(line) or line.get("targets"))
        ),
        lambda line: (line["dataset"], line["attention"], _seen(line)),
    )
    rows = []
    for (dataset, attention, seen), lines in sorted(found.items()):
        score = _mean(lines, "ndcg@10")
        alone = found.get((dataset, attention, "ids"), {})
        shared = [line["metrics"]["ndcg@10"] for seed, line in alone.items() if seed in lines]
        same = [lines[seed]["metrics"]["ndcg@10"] for seed in alone if seed in lines]
        gain = f"{mean(same) / mean(shared) - 1:+.1%}" if shared and seen != "ids" else ""
        row = [f"{dataset}, {attention}: {seen}", str(len(lines)), f"{score:.4f}", gain]
        rows.append([*row, _paired(lines)])
    header = ["log, attention: input", "seeds", "NDCG@10", "more than ids", "paired test"]
    return table(header, rows)


def kinds() -> str:
    """Metrics of the wanted kind, by how much the kinds count and whether the model sees them."""
    found = _by_seed(
        filter(_wanted, read("features.jsonl")),
        lambda line: (line["dataset"], line["attention"], _wanted(line), _seen(line), _how(line)),
    )
    rows = [
        [
            f"{dataset}, {attention}, {wanted}: {', '.join(filter(None, (seen, how)))}",
            str(len(lines)),
            f"{_mean(lines, 'ndcg@10'):.4f}",
            f"{_mean(lines, 'hr@10'):.4f}",
            _paired(lines),
        ]
        for (dataset, attention, wanted, seen, how), lines in found.items()
    ]
    header = ["log, attention, wanted kind: input, training", "seeds", "NDCG@10", "HR@10"]
    return table([*header, "paired test"], rows)


def by_kind() -> str:
    """NDCG@10 of all targets, and of those of each kind, by how much the kinds count."""
    found = _by_seed(
        (line for line in read("features.jsonl") if line.get("kind_metrics") and not _wanted(line)),
        lambda line: (line["dataset"], line["attention"], _seen(line), _how(line)),
    )
    rows = []
    for (dataset, attention, seen, how), lines in found.items():
        names = next(iter(lines.values()))["kind_metrics"]
        each = [
            f"{name} {mean(line['kind_metrics'][name]['ndcg@10'] for line in lines.values()):.4f}"
            for name in names
        ]
        label = f"{dataset}, {attention}: {', '.join(filter(None, (seen, how)))}"
        rows.append([label, str(len(lines)), f"{_mean(lines, 'ndcg@10'):.4f}", ", ".join(each)])
    header = [
        "log, attention: input, training",
        "seeds",
        "NDCG@10 of all",
        "of the targets of a kind",
    ]
    return table(header, rows)


def cold_items() -> str:
    """Recall of targets that have no training event."""
    found = _by_seed(
        (line for line in read("features.jsonl") if line["cold_metrics"] and not _wanted(line)),
        lambda line: (line["dataset"], _seen(line), f"{line.get('id_dropout', 0.1):g}"),
    )
    rows = []
    for (dataset, seen, dropout), lines in sorted(found.items()):
        cold = [line["cold_metrics"] for line in lines.values()]
        content = next(iter(lines.values()))["content"]

        def averaged(name: str, digits: int, cold: list[dict[str, float]] = cold) -> str:
            there = all(name in each for each in cold)
            return f"{mean(each[name] for each in cold):.{digits}f}" if there else ""

        rows.append(
            [
                f"{dataset}: {seen}" + (f", id dropout {dropout}" if content else ""),
                str(len(lines)),
                f"{_mean(lines, 'ndcg@10'):.4f}",
                f"{cold[0]['targets']:,}",
                averaged("recall@10", 4),
                averaged("recall@10 among cold items", 3),
                averaged(CATEGORIES, 3),
            ]
        )
    header = ["log: input", "seeds", "NDCG@10 of all", "cold targets", "recall@10 among all"]
    return table([*header, "among cold", "by popularity of categories"], rows)


def rare_items() -> str:
    """NDCG@10 of targets with few training events, with and without content."""
    found = _by_seed(
        (line for line in read("features.jsonl") if line.get("rare_metrics")),
        lambda line: (line["dataset"], line["attention"], _seen(line)),
    )
    rows = []
    for (dataset, attention, seen), lines in found.items():
        rare = [line["rare_metrics"] for line in lines.values()]
        row = [f"{dataset}, {attention}: {seen}", str(len(lines)), f"{_mean(lines, 'ndcg@10'):.4f}"]
        scores = mean(each["ndcg@10"] for each in rare)
        rows.append([*row, f"{rare[0]['targets']:,}", f"{scores:.4f}"])
    header = [
        "log, attention: input",
        "seeds",
        "NDCG@10 of all",
        "rare targets",
        "NDCG@10 of these",
    ]
    return table(header, rows)


def _by_seed(
    lines: Iterable[Line], key: Callable[[Line], tuple[str, ...]]
) -> dict[tuple[str, ...], dict[int, Line]]:
    """Lines by their key, the last one of each seed."""
    found: dict[tuple[str, ...], dict[int, Line]] = {}
    for line in lines:
        found.setdefault(key(line), {})[line["seed"]] = line
    return found


def _mean(lines: dict[int, Line], metric: str) -> float:
    """Mean over seeds of a metric: of the wanted kind, which all targets are where there is one."""
    return mean(line["metrics"][metric] for line in lines.values())


def _paired(lines: dict[int, Line]) -> str:
    """Difference of the means over seeds, its interval and p-value; empty where not tested."""
    tests = [line["paired"] for line in lines.values() if line.get("paired")]
    if not tests:
        return ""
    test = tests[-1]
    p_value = "p < 0.001" if test["p_value"] < 0.001 else f"p = {test['p_value']:.3f}"
    against = "" if test["against"] == "ids" else f" than {test['against']}"
    interval = f"({test['low']:+.4f} to {test['high']:+.4f})"
    return f"{test['difference']:+.4f}{against} {interval}, {p_value}"


def _wanted(line: Line) -> str:
    """The kinds that all targets are of; empty where targets are of any kind."""
    return line.get("protocol", "").partition(TARGETS)[2]


def _how(line: Line) -> str:
    """How much the kinds count in training, or what it is validated on."""
    counted = f"targets {line['targets']}" if line.get("targets") else ""
    return counted or ("validated on all kinds" if line.get("validated_on_all") else "")


def _seen(line: Line) -> str:
    parts = [TIMES[line["time"]]]
    parts.append("moment of the request" if line["request_time"] else "")
    parts.append("content" if line["content"] else "")
    parts.append(f"kinds {line['kinds'].replace(',', ' and')}" if line.get("kinds") else "")
    parts += [name for name in ("context", "users") if line.get(name)]
    return ", ".join(filter(None, parts)) or "ids"


def costs() -> str:
    """Time with each input beside that of ids alone."""
    lines = {(line["measure"], line["inputs"]): line for line in read("inputs.jsonl")}
    rows = [
        [measure, inputs, f"{line['ms']:.2f}", f"{line['ratio']:.2f}"]
        for (measure, inputs), line in lines.items()
    ]
    return table(["measured", "inputs", "ms", "ids alone = 1"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "features": features,
    "kinds": kinds,
    "by-kind": by_kind,
    "rare-items": rare_items,
    "cold-items": cold_items,
    "input-cost": costs,
}
