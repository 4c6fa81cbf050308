"""Models that were tuned alike, from results/tuned.jsonl: the last search of each model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.accuracy.tuned_study import TUNING
from benchmarks.tables.accuracy_tables import shown_test
from benchmarks.tables.measured_lines import Line, read, table
from benchmarks.tables.reproduced_tables import averaged, corrected_over

# Data set and name of the model.
Key = tuple[str, str]


def searches() -> dict[Key, Line]:
    """The line of the last search of each model on each data set."""
    lines = [line for line in read("tuned.jsonl") if line.get("measure") == TUNING]
    return {_key(line): line for line in lines}


def _key(line: Line) -> Key:
    return line["dataset"], line["model"]


def trainings() -> dict[Key, list[Line]]:
    """Lines of the trainings with the best options, all items ranked, one for each seed."""
    found: dict[Key, dict[int, Line]] = {}
    for line in read("tuned.jsonl"):
        if line.get("ranking") == "full":
            found.setdefault(_key(line), {})[line["seed"]] = line
    return {key: list(lines.values()) for key, lines in found.items()}


def tuned() -> str:
    """Metrics of the tuned models, and their difference to tuned dense attention."""
    lines, found = trainings(), searches()
    tests = {_key(line): line["paired"] for line in read("tuned.jsonl") if "paired" in line}
    tested = {key: shown_test(*test) for key, test in corrected_over(tests).items()}
    header = ["data: model", "trials", "seeds", "validation, as it was", "validation, tuned"]
    return table(
        [*header, "HR@10", "NDCG@10", "difference to dense", "p, Holm"],
        (
            [
                ": ".join(key),
                str(search["trials"]),
                str(len(lines[key])),
                # The first trial may have failed.
                "" if search["first_validation"] is None else f"{search['first_validation']:.4f}",
                f"{search['validation']:.4f}",
                *(averaged(lines[key], name) for name in ("hr@10", "ndcg@10")),
                *tested.get(key, ("", "")),
            ]
            for key, search in found.items()
        ),
    )


def options() -> str:
    """The best options of each model, of those that were searched."""
    found = searches()
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
