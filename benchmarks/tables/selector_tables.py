"""The tables of docs/selector.md. Where a thing was measured again, the last line counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.tables.measured_lines import Line, read, table

# Trainings of this task and commit were another way, and their lines do not say so.
UNSAID: dict[tuple[Any, Any], dict[str, Any]] = {
    ("recall", "4e1ab39"): {"last_steps": 6_000, "sample": "with replacement"}
}


def newest(*key: str) -> list[Line]:
    """Of the lines on selectors with the same values at ``key`` the last one, in order."""
    found: dict[str, Line] = {}
    for line in read("selector.jsonl"):
        line = line | {"training": _training(line)}
        same = json.dumps([line.get(name) for name in key], sort_keys=True)
        found.pop(same, None)
        found[same] = line
    return list(found.values())


def _training(line: Line) -> dict[str, Any]:
    """What was another way to train at the last length, where such are compared."""
    if line["task"] not in ("recall", "recall-drift") or line.get("length") != 8_192:
        return {}
    return line.get("training", UNSAID.get((line["task"], line.get("commit")), {}))


def recall_lines(task: str, distance: str) -> list[Line]:
    """Trainings on associative recall with answers at one range of distances, by seed."""
    lines = newest("task", "candidate", "seed", "options", "training", "length", "distance")
    chosen = [line for line in lines if line["task"] == task and line.get("distance") == distance]
    return sorted(chosen, key=lambda line: line["seed"])


def recall(task: str, distance: str) -> str:
    """Recall and accuracy of each candidate, trained as by default, seed by seed."""
    groups: dict[tuple, list[Line]] = {}
    for line in recall_lines(task, distance):
        if line["training"]:
            continue
        key = (-line["length"], line["candidate"], _variant(line["options"]))
        groups.setdefault(key, []).append(line)
    rows = [
        [
            ", ".join(filter(None, (name, variant))),
            f"{-length:,}",
            _each((line["metrics"]["accuracy"] for line in lines), digits=3),
            _each((line["recall_at_n"] for line in lines), digits=3),
            _each(line["metrics"].get("recall_any_head") for line in lines),
            _each(line["mass_covered"] for line in lines),
            _each(line["mass_best"] for line in lines),
            _steps(lines),
        ]
        for (length, name, variant), lines in sorted(groups.items())
    ]
    header = ["candidate", "length", "accuracy", "recall@n", "by any head", "mass covered"]
    return table([*header, "by the best", "steps"], rows)


def sizes() -> str:
    """One size changed at a time, with the perceptron and with mean pooling."""
    groups: dict[str, dict[str, list[Line]]] = {}
    for line in recall_lines("recall", "716-1432"):
        name, variant = line["candidate"], _variant(line["options"])
        groups.setdefault(variant, {}).setdefault(name, []).append(line)
    rows = []
    for variant, by_name in sorted(groups.items()):
        line = next(iter(by_name.values()))[0]
        row = [variant or "as it is", f"{line['n'] * line['block_size'] / 2_048:.1%}"]
        for name in ("mlp", "mean"):
            lines = by_name.get(name, [])
            row += [
                _each(line["metrics"]["accuracy"] for line in lines),
                _each(line["recall_at_n"] for line in lines),
                _steps(lines),
            ]
        rows.append(row)
    header = ["changed", "of the history"]
    for name in ("mlp", "mean"):
        header += [f"{name}: accuracy", "recall@n", "steps"]
    return table(header, rows)


def drift() -> str:
    """Ways to train at the last length, with the course of recall there."""
    lines = [
        line
        for line in newest("task", "candidate", "seed", "options", "training", "length", "distance")
        if (line["task"] == "recall-drift" or (line["task"] == "recall" and line["training"]))
        and line["length"] == 8_192
    ]
    rows = [
        [
            line["candidate"],
            _changed(line),
            str(line["seed"]),
            *(
                _each([value], digits=3)
                for value in (
                    line["metrics"]["accuracy"],
                    line["recall_at_n"],
                    line["mass_covered"],
                )
            ),
            _each(recall for _, length, _, recall in line.get("course", []) if length == 8_192),
            _steps([line]),
        ]
        for line in lines
    ]
    rows.sort(key=lambda row: row[:3])
    header = ["candidate", "changed", "seed", "accuracy", "recall@n", "mass covered"]
    return table([*header, "recall@n every 500 steps", "steps"], rows)


def _changed(line: Line) -> str:
    """How a training differs, in words, but for what all those on ways to train have."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in (line["training"] | line["options"]).items()
        if name != "stage_steps" and (name != "sample" or line["candidate"] != "full")
    )


def gradients() -> str:
    """Norm of the gradient of each part at the end of each stage of a training."""
    lines = [
        line
        for line in newest("task", "candidate", "seed", "options", "training", "length", "distance")
        if line["task"] in ("recall", "recall-drift")
        and (line["candidate"], line["seed"], _variant(line["options"])) == ("mlp", 0, "")
        and not _changed(line | {"options": {}})
        and "gradient_norms" in line
    ]
    norms = max(lines, key=lambda line: line["length"])["gradient_norms"]
    rows = [
        [f"`{part}`", *(f"{stage[part]:.2g}" for stage in norms.values())]
        for part in next(iter(norms.values()))
    ]
    return table(["part", *(f"{int(length):,}" for length in norms)], rows)


def _each(values: Iterable[float | None], digits: int = 2) -> str:
    return " ".join("" if value is None else f"{value:.{digits}f}" for value in values)


def _steps(lines: Iterable[Line]) -> str:
    return " ".join(f"{line['steps']:,}{'' if line['finished'] else ' (cut)'}" for line in lines)


def _variant(options: dict[str, Any]) -> str:
    """What of a model's options differs from the others of its size."""
    hidden = {"hidden_size", "heads", "inner_size"}
    if options.get("compress_window") == 2 * options.get("block_size", 0):
        hidden.add("compress_window")
    return ", ".join(f"{name} {value}" for name, value in options.items() if name not in hidden)


def log_lines() -> list[Line]:
    """Lines on real histories, pairs of candidates included."""
    return [
        line
        for line in read("selector.jsonl")
        if "ndcg@10" in line["metrics"] and not line.get("options")
    ]


def coverage(long: bool) -> str:
    """What selected blocks cover of the attention in trained models, beside accuracy."""
    measured: dict[tuple, Line] = {}
    differences: dict[tuple, Line] = {}
    for line in log_lines():
        metrics = {"covered": line.get("mass_covered"), "best": line.get("mass_best")}
        metrics |= line["metrics"]
        metrics = metrics.get("long_histories") if long else metrics
        if metrics is None:
            continue
        metrics = metrics | {"commit": line.get("commit")}
        if "ratio" in metrics:
            measured[line["task"], line["candidate"], line["seed"]] = metrics
        differences[line["task"], line["candidate"], line["seed"], metrics["commit"]] = metrics
    # A difference belongs to the training that it stands beside: to that of the same commit.
    rows = [
        [
            task,
            name,
            str(seed),
            f"{metrics['covered']:.3f}",
            f"{metrics['best']:.3f}",
            f"{metrics['random']:.3f}",
            "{:.3f} ({:.3f} to {:.3f})".format(*metrics["ratio"]),
            f"{metrics['ndcg@10']:.4f}",
            _interval(differences.get((task, f"{name} - full", seed, metrics["commit"]))),
        ]
        for (task, name, seed), metrics in sorted(measured.items())
    ]
    header = ["data", "selector", "seed", "covered", "best 4", "random 4", "covered / best"]
    return table([*header, "NDCG@10", "less dense"], rows)


def pooling() -> str:
    """Mean pooling less the perceptron on real histories."""
    found = {
        (line["task"], line["seed"]): line["metrics"]
        for line in log_lines()
        if line["candidate"] == "mean - mlp"
    }
    rows = [
        [task, str(seed), _interval(metrics), _interval(metrics.get("long_histories"))]
        for (task, seed), metrics in sorted(found.items())
    ]
    return table(["data", "seed", "all users", "200 and more events"], rows)


def _interval(metrics: dict[str, Any] | None) -> str:
    """A difference of NDCG@10 with its interval."""
    if metrics is None:
        return ""
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*metrics["ndcg@10"])


def distillation_cost() -> str:
    """Time of a training step and of encoding, beside mean pooling's."""
    lines = [line for line in newest("task", "candidate", "length") if line["task"] == "cost"]
    steps = {(line["length"], line["candidate"]): line["metrics"]["training_ms"] for line in lines}
    rows = [
        [
            line["candidate"],
            "GPU" if "NVIDIA" in line["hardware"] else "CPU",
            f"{line['length']:,}",
            f"{line['metrics']['training_ms']:.1f}",
            *(
                f"{line['metrics']['training_ms'] / steps[line['length'], mean]:.2f}"
                for mean in ("mean-untaught", "mean")
            ),
            f"{line['metrics']['encoding_ms']:.1f}",
        ]
        for line in sorted(lines, key=lambda line: -line["length"])
    ]
    header = ["candidate", "device", "length", "training step, ms"]
    return table([*header, "over mean-untaught", "over mean", "encoding, ms"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "recall": lambda: recall("recall", "2866-5734"),
    "recall-union": lambda: recall("recall-union", "2866-5734"),
    "recall-short": lambda: recall("recall", "178-358"),
    "recall-control": lambda: recall("recall-control", "1-16"),
    "recall-sizes": sizes,
    "recall-drift": drift,
    "gradient-norms": gradients,
    "coverage": lambda: coverage(long=False),
    "coverage-long": lambda: coverage(long=True),
    "pooling": pooling,
    "distillation-cost": distillation_cost,
}
