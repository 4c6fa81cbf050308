"""Lines of results and Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Line = dict[str, Any]


def read(name: str) -> list[Line]:
    """The lines of a results file."""
    text = (ROOT / "results" / name).read_text()
    return [json.loads(line) for line in text.splitlines() if line]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def trainings(ranking: str) -> list[list[Line]]:
    """Lines of each model on each data set, the last one of every seed, longest histories first."""
    found: dict[tuple[str, int, str], dict[int, Line]] = {}
    for line in read("accuracy.jsonl"):
        if line["ranking"] == ranking:
            key = line["dataset"], line["max_len"], line["model"]
            found.setdefault(key, {})[line["seed"]] = line
    # Data sets as long as each other in the order in which they were measured first.
    places = list(dict.fromkeys(dataset for dataset, *_ in found))
    keys = sorted(found, key=lambda key: (-key[1], places.index(key[0]), key[2]))
    return [list(found[key].values()) for key in keys]
