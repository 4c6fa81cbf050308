"""The paper's tables from results/reproduce.jsonl, means over the seeds.

The last line of each seed counts, and the last test. P-values are corrected over the table (Holm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.accuracy.paper_tables import TABLES as PAPER
from benchmarks.accuracy.paper_training import Training
from benchmarks.tables.accuracy_tables import shown_test
from benchmarks.tables.measured_lines import Line, read, table
from blossomrec.evaluation.significance import holm
from blossomrec.models.building import build_model

# What is measured: data set, longest history, name of the model.
Key = tuple[str, int, str]
SIGNIFICANT = 0.05
# The models with dense attention.
DENSE = {form.against for paper in PAPER.values() for form in paper.rows.values()}
TESTED = ("difference to dense", "p, Holm")


def trainings(ranking: str = "full") -> dict[Key, list[Line]]:
    """Lines of each model on each data set by longest history, the last one of every seed."""
    found: dict[Key, dict[int, Line]] = {}
    for line in read("reproduce.jsonl"):
        # Where there are not 100 items to draw, the ranking is called by how many there are.
        if "metrics" in line and line["ranking"][:3] == ranking[:3]:
            found.setdefault(_key(line), {})[line["seed"]] = line
    return {key: list(lines.values()) for key, lines in found.items()}


def _key(line: Line) -> Key:
    return line["dataset"], line["max_len"], line["model"]


def keys(name: str) -> list[tuple[Key, str]]:
    """What a table has measured, and the label of its row, in the order of the table."""
    measured, paper = trainings(), PAPER[name]
    rows = [
        ((dataset, max_len, form.name), label)
        for dataset in paper.datasets
        for max_len in paper.lengths(dataset)
        for label, form in paper.rows.items()
    ]
    return [(key, label) for key, label in rows if key in measured]


def tests(measured: Iterable[Key]) -> dict[Key, tuple[str, str]]:
    """Difference and p-value of what was tested, in words, and of how many seeds if not of all."""
    trained, seeds = trainings(), {key: len(line["seeds"]) for key, line in _tested().items()}
    words = {key: shown_test(*found) for key, found in corrected(measured).items()}
    for key, (difference, p_value) in words.items():
        if seeds[key] < len(trained[key]):
            words[key] = f"{difference}, {_counted(seeds[key])}", p_value
    return words


def _counted(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def corrected(measured: Iterable[Key]) -> dict[Key, tuple[Line, float]]:
    """The tests of a table, and their p-values corrected over it."""
    found = {key: line["paired"] for key, line in _tested().items()}
    return corrected_over({key: found[key] for key in dict.fromkeys(measured) if key in found})


def _tested() -> dict[Key, Line]:
    """The test of each model to dense attention: the last of those with the most seeds."""
    found: dict[Key, Line] = {}
    for line in paired_lines():
        key = _key(line)
        if line["against"] in DENSE and len(line["seeds"]) >= len(found.get(key, line)["seeds"]):
            found[key] = line
    return found


def paired_lines() -> list[Line]:
    """The lines of paired tests."""
    return [line for line in read("reproduce.jsonl") if "paired" in line]


def corrected_over(found: dict[Any, Line]) -> dict[Any, tuple[Line, float]]:
    """Tests with p-values that are corrected over all of them."""
    p_values = holm(np.array([test["p_value"] for test in found.values()]))
    pairs = zip(found.items(), p_values.tolist(), strict=True)
    return {key: (test, p_value) for (key, test), p_value in pairs}


def averaged(lines: Iterable[Line], name: str, part: str = "metrics") -> str:
    """The mean of a metric, whatever number of sampled items it is called by; empty without it."""
    values = [
        value
        for line in lines
        for metric, value in line.get(part, {}).items()
        if metric.rpartition("_")[2] == name
    ]
    return f"{mean(values):.4f}" if values else ""


def accuracy() -> str:
    """Metrics at 10 of all models, among all items and among 100 that are drawn."""
    full, sampled = trainings(), trainings("uni100")
    rows, tested = keys("accuracy"), tests(key for key, _ in keys("accuracy"))
    header = ["data, longest history: model", "seeds", "HR@10", "NDCG@10", "HR@10, uni100"]
    return table(
        [*header, "NDCG@10, uni100", *TESTED],
        (
            [
                f"{key[0]}, {key[1]}: {label}",
                str(len(full[key])),
                *(averaged(full[key], name) for name in ("hr@10", "ndcg@10")),
                *(averaged(sampled.get(key, ()), name) for name in ("hr@10", "ndcg@10")),
                *tested.get(key, ("", "")),
            ]
            for key, label in rows
        ),
    )


def sizes() -> str:
    """Parameters of each model that was measured, besides the vectors of items."""
    rows = {}
    for (dataset, max_len, _), label in keys("accuracy"):
        form = PAPER["accuracy"].rows[label]
        if form.baseline or label in rows:
            continue
        model = build_model(Training(dataset, form, max_len).configure().model, 2)
        counts = {name: each.numel() for name, each in model.named_parameters()}
        counts.pop("item_embeddings.weight")
        chooses = sum(count for name, count in counts.items() if ".compress." in name)
        rows[label] = [label, f"{sum(counts.values()):,}", f"{chooses:,}" if chooses else ""]
    return table(["model", "parameters", "of them for block keys"], rows.values())


def in_short() -> str:
    """NDCG@10 among all items of some models side by side, of those that were measured."""
    full, models = trainings(), ("SASRec", "BlossomRec", "BlossomRec (as published)")
    models = (*models, "SASRec (linrec)", "Mamba4Rec", "BERT4Rec", "BERT4Rec-Blossom")
    paper = PAPER["accuracy"]
    measured = {
        (dataset, length): {
            model: averaged(full[dataset, length, model], "ndcg@10")
            for model in models
            if (dataset, length, model) in full
        }
        for dataset in paper.datasets
        for length in paper.lengths(dataset)
    }
    measured = {key: values for key, values in measured.items() if values}
    shown = [model for model in models if any(model in values for values in measured.values())]
    rows = (
        [f"{data}, {length}", *(values.get(model, "") for model in shown)]
        for (data, length), values in measured.items()
    )
    return table(["data, longest history", *shown], rows)


def choices(name: str) -> str:
    """NDCG@10 among all items of what a table varies."""
    full, rows = trainings(), keys(name)
    tested = tests(key for key, _ in rows)
    header = ["data, longest history: choice", "seeds", "validation", "test", *TESTED]
    return table(
        header,
        (
            [
                f"{key[0]}, {key[1]:,}: {label}",
                str(len(full[key])),
                *(averaged(full[key], "ndcg@10", part) for part in ("validation", "metrics")),
                *tested.get(key, ("", "")),
            ]
            for key, label in rows
        ),
    )


def lengths() -> str:
    """NDCG@10 among all items over the longest history, and where it differs from dense."""
    full, rows, forms = trainings(), keys("lengths"), PAPER["lengths"].rows
    tested = corrected(key for key, _ in rows)
    most = max((len(full[key]) for key, _ in rows), default=0)
    found: dict[tuple[str, str], dict[int, str]] = {}
    for key, label in rows:
        value = averaged(full[key], "ndcg@10") + _mark(*tested.get(key, ({}, 1.0)))
        # What is counted has no seeds.
        if (count := len(full[key])) < most and not forms[label].baseline:
            value += f", {_counted(count)}"
        found.setdefault((key[0], label), {})[key[1]] = value
    longest = PAPER["lengths"].max_lens
    return table(
        ["data: model", *(f"{length:,}" for length in longest)],
        (
            [f"{data}: {model}", *(values.get(length, "") for length in longest)]
            for (data, model), values in found.items()
        ),
    )


def _mark(test: Line, p_value: float) -> str:
    """Whether it is significantly above or below, in a sign."""
    if p_value >= SIGNIFICANT:
        return ""
    return " (+)" if test["difference"] > 0 else " (-)"


def by_length() -> str:
    """NDCG@10 by how many events users have, at the longest history that was measured."""
    full = trainings()
    last = {(key[0], label): full[key] for key, label in keys("lengths")}
    rows, bins = [], {}
    for lines in last.values():
        for part in lines[0]["by_length"]:
            bins[part["low"]] = part["high"]
    for (data, model), lines in last.items():
        parts = [
            [part for line in lines for part in line["by_length"] if part["low"] == low]
            for low in sorted(bins)
        ]
        rows.append([f"{data}, {lines[0]['max_len']:,}: {model}"])
        rows[-1] += [averaged(part, "ndcg@10") for part in parts]
    named = [f"{low:,} to {bins[low]:,}" if bins[low] else f"{low:,} on" for low in sorted(bins)]
    return table(["data, longest history: model", *named], rows)


def comparisons() -> str:
    """Models of long histories tested against each other."""
    wanted = PAPER["lengths"].comparisons
    found = {
        (*_key(line), line["against"], len(line["seeds"])): line["paired"]
        for line in paired_lines()
        if (line["model"], line["against"]) in wanted
    }
    return table(
        ["data, longest history: model", "beside", "seeds", "difference", "p, Holm"],
        (
            [f"{dataset}, {max_len:,}: {model}", other, str(seeds), *shown_test(*test)]
            for (dataset, max_len, model, other, seeds), test in sorted(
                corrected_over(found).items()
            )
        ),
    )


def events() -> str:
    """One more event of one user, by model and what came before."""
    lines = [line for line in read("reproduce.jsonl") if line.get("measure") == "one more event"]
    found = {(line["length"], line["model"]): line for line in lines}
    models = list(dict.fromkeys(line["model"] for line in lines))
    return table(
        ["events before", *(f"{model}, ms" for model in models)],
        (
            [
                f"{length:,}",
                *(f"{line['ms']:.2f} ({line['ratio']:.2f})" for line in each),
            ]
            for length in sorted({length for length, _ in found})
            if (each := [found[length, model] for model in models])
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "reproduce-accuracy": accuracy,
    "reproduce-sizes": sizes,
    "reproduce-ablation": lambda: choices("ablation"),
    "reproduce-near-bias": lambda: choices("near-bias"),
    "reproduce-precision": lambda: choices("precision"),
    "reproduce-parameters": lambda: choices("parameters"),
    "reproduce-lengths": lengths,
    "reproduce-by-length": by_length,
    "reproduce-comparisons": comparisons,
    "reproduce-events": events,
    "accuracy-short": in_short,
}
