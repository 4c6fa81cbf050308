"""Models that were tuned alike, from results/tuned.jsonl: the best trial of each model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.accuracy.tuned_study import TRIAL, training_with
from benchmarks.tables.accuracy_tables import shown_test
from benchmarks.tables.measured_lines import Line, read, table
from benchmarks.tables.reproduced_tables import averaged, corrected_over

# Data set and name of the model.
Key = tuple[str, str]
NOTHING = "Not measured yet.\n"


def _key(line: Line) -> Key:
    return line["dataset"], line["model"]


def trials() -> dict[Key, list[Line]]:
    """The lines of each model's trials, the last of each number."""
    found: dict[Key, dict[int, Line]] = {}
    for line in read("tuned.jsonl"):
        # Trainings that were cut short are no trials of a model.
        if line.get("measure") == TRIAL and line["most_epochs"] is None:
            found.setdefault(_key(line), {})[line["trial"]] = line
    return {key: [lines[number] for number in sorted(lines)] for key, lines in found.items()}


def best() -> dict[Key, Line]:
    """The line of each model's best trial, the first of equal ones."""
    return {key: max(lines, key=lambda line: line["validation"]) for key, lines in trials().items()}


def trainings() -> dict[Key, list[Line]]:
    """Lines of the trainings with the best options, all items ranked, one for each seed.

    Models that are not trained with them yet are left out.
    """
    options = {key: line["options"] for key, line in best().items()}
    found: dict[Key, dict[int, Line]] = {key: {} for key in options}
    for line in read("tuned.jsonl"):
        key = _key(line)
        if line.get("ranking") != "full" or key not in options:
            continue
        if training_with(options[key], *key, line["seed"]).is_of(line):
            found[key][line["seed"]] = line
    return {key: list(lines.values()) for key, lines in found.items() if lines}


def tuned() -> str:
    """Metrics of the tuned models, and their difference to tuned dense attention."""
    lines, tried, found = trainings(), trials(), best()
    if not lines:
        return NOTHING
    tests = {
        _key(line): line["paired"]
        for line in read("tuned.jsonl")
        if "paired" in line and _is_of_best(line, found)
    }
    tested = {key: shown_test(*test) for key, test in corrected_over(tests).items()}
    header = ["data: model", "trials", "seeds", "validation, as it was", "validation, tuned"]
    return table(
        [*header, "HR@10", "NDCG@10", "difference to dense", "p, Holm"],
        (
            [
                ": ".join(key),
                str(len(tried[key])),
                str(len(lines[key])),
                f"{tried[key][0]['validation']:.4f}",
                f"{line['validation']:.4f}",
                *(averaged(lines[key], name) for name in ("hr@10", "ndcg@10")),
                *tested.get(key, ("", "")),
            ]
            for key, line in found.items()
            if key in lines
        ),
    )


def _is_of_best(test: Line, found: dict[Key, Line]) -> bool:
    """Whether a test is of two models with the options that are best by now."""
    keys = [(test["dataset"], test[name]) for name in ("model", "against")]
    if not all(key in found for key in keys):
        return False
    best_forms = (training_with(found[key]["options"], *key).form for key in keys)
    return test["changed"] == [form.changed for form in best_forms]


def options() -> str:
    """The best options of each model, of those that were searched."""
    lines = trainings()
    found = {key: line for key, line in best().items() if key in lines}
    if not found:
        return NOTHING
    names = dict.fromkeys(name for line in found.values() for name in line["options"])
    words = [name.partition(".")[2].replace("_", " ") for name in names]
    return table(
        ["data: model", *words],
        (
            [": ".join(key), *(_shown(line["options"].get(name)) for name in names)]
            for key, line in found.items()
        ),
    )


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


TABLES: dict[str, Callable[[], str]] = {"tuned": tuned, "tuned-options": options}
