"""The tables of docs/selector.md. Where a thing was measured again, the last line counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tables import Line, read, table


def newest(*key: str) -> list[Line]:
    """Of the lines on selectors with the same values at ``key`` the last one, in order."""
    found: dict[str, Line] = {}
    for line in read("selector.jsonl"):
        same = json.dumps([line.get(name) for name in key], sort_keys=True)
        found.pop(same, None)
        found[same] = line
    return list(found.values())


def recall_lines(task: str, distance: str) -> list[Line]:
    """Trainings on associative recall with answers at one range of distances, by seed."""
    lines = newest("task", "candidate", "seed", "options", "length", "distance")
    chosen = [line for line in lines if line["task"] == task and line.get("distance") == distance]
    return sorted(chosen, key=lambda line: line["seed"])


def recall(task: str, distance: str) -> str:
    """Recall and accuracy of each candidate on associative recall, seed by seed."""
    groups: dict[tuple, list[Line]] = {}
    for line in recall_lines(task, distance):
        key = (-line["length"], line["candidate"], _variant(line["options"]))
        groups.setdefault(key, []).append(line)
    rows = [
        [
            ", ".join(filter(None, (name, variant))),
            f"{-length:,}",
            _each(line["metrics"]["accuracy"] for line in lines),
            _each(line["recall_at_n"] for line in lines),
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
        if name == "mlp-no-own":
            name, variant = "mlp", "without the own block"
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
    lines = newest("task", "candidate", "seed", "options", "training", "length")
    rows = [
        [
            line["candidate"],
            _changed(line["training"] | line["options"]),
            f"{line['metrics']['accuracy']:.3f}",
            f"{line['recall_at_n']:.3f}",
            f"{line['mass_covered']:.3f}",
            _each(recall for _, length, _, recall in line["course"] if length == 8_192),
            _steps([line]),
        ]
        for line in lines
        if line["task"] == "recall-drift" and line["length"] == 8_192
    ]
    rows.sort(key=lambda row: row[:2])
    header = ["candidate", "changed", "accuracy", "recall@n", "mass covered"]
    return table([*header, "recall@n every 500 steps", "steps"], rows)


def _changed(options: dict[str, Any]) -> str:
    """Options in words, but for what all these trainings have."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in options.items()
        if name != "stage_steps"
    )


def gradients() -> str:
    """Norm of the gradient of each part at the end of each stage of a training."""
    lines = [
        line
        for line in newest("task", "candidate", "seed", "options", "length", "distance")
        if line["task"] == "recall"
        and (line["candidate"], line["seed"], _variant(line["options"])) == ("mlp", 0, "")
        and "gradient_norms" in line
    ]
    norms = max(lines, key=lambda line: line["length"])["gradient_norms"]
    rows = [
        [f"`{part}`", *(f"{stage[part]:.2g}" for stage in norms.values())]
        for part in next(iter(norms.values()))
    ]
    return table(["part", *(f"{int(length):,}" for length in norms)], rows)


def _each(values: Iterable[float | None]) -> str:
    return " ".join("" if value is None else f"{value:.2f}" for value in values)


def _steps(lines: Iterable[Line]) -> str:
    return " ".join(f"{line['steps']:,}{'' if line['finished'] else ' (cut)'}" for line in lines)


def _variant(options: dict[str, Any]) -> str:
    """What of a model's options differs from the others of its size."""
    hidden = {"hidden_size", "heads", "inner_size"}
    if options.get("compress_window") == 2 * options.get("block_size", 0):
        hidden.add("compress_window")
    return ", ".join(f"{name} {value}" for name, value in options.items() if name not in hidden)


def log_lines() -> dict[tuple[str, int, str], dict[str, Any]]:
    """Metrics on real histories by data set, seed and candidate, pairs of candidates included."""
    return {
        (line["task"], line["seed"], line["candidate"]): line["metrics"]
        | {"covered": line.get("mass_covered"), "best": line.get("mass_best")}
        for line in newest("task", "candidate", "seed", "options")
        if "ndcg@10" in line["metrics"] and not line.get("options")
    }


def coverage(long: bool) -> str:
    """What selected blocks cover of the attention in trained models, beside accuracy."""
    found = log_lines()
    if long:
        found = {
            key: each["long_histories"] for key, each in found.items() if "long_histories" in each
        }
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
            _interval(found.get((task, seed, f"{name} - full"))),
        ]
        for (task, seed, name), metrics in sorted(found.items())
        if "ratio" in metrics
    ]
    header = ["data", "selector", "seed", "covered", "best 4", "random 4", "covered / best"]
    return table([*header, "NDCG@10", "less dense"], rows)


def pooling() -> str:
    """Mean pooling less the perceptron on real histories."""
    rows = [
        [task, str(seed), _interval(metrics), _interval(metrics.get("long_histories"))]
        for (task, seed, name), metrics in sorted(log_lines().items())
        if name == "mean - mlp"
    ]
    return table(["data", "seed", "all users", "200 and more events"], rows)


def _interval(metrics: dict[str, Any] | None) -> str:
    """A difference of NDCG@10 with its interval."""
    if metrics is None:
        return ""
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*metrics["ndcg@10"])


def teaching_cost() -> str:
    """Time of a training step and of encoding."""
    lines = [line for line in newest("task", "candidate", "length") if line["task"] == "cost"]
    least = {
        line["length"]: line["metrics"]["training_ms"]
        for line in lines
        if line["candidate"] == "mean-untaught"
    }
    rows = [
        [
            line["candidate"],
            "GPU" if "NVIDIA" in line["hardware"] else "CPU",
            f"{line['length']:,}",
            f"{line['metrics']['training_ms']:.1f}",
            f"{line['metrics']['training_ms'] / least[line['length']]:.2f}",
            f"{line['metrics']['encoding_ms']:.1f}",
        ]
        for line in sorted(lines, key=lambda line: -line["length"])
    ]
    header = ["candidate", "device", "length", "training step, ms", "over the first"]
    return table([*header, "encoding, ms"], rows)
