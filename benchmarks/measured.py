"""Fill the tables of README.md and docs/ from the lines in results/.

    python benchmarks/measured.py            # write them
    python benchmarks/measured.py --check    # fail where one is out of date

A table stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md")
SECTION = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
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


def accuracy(ranking: str) -> str:
    """Metrics at 10 of every data set and model under one ranking."""
    prefix = "" if ranking == "full" else f"{ranking}_"
    names = ("hr@10", "mrr@10", "ndcg@10")
    rows = [
        [
            f"{line['dataset']}, {line['max_len']}",
            line["model"],
            *(f"{line['metrics'][prefix + name]:.4f}" for name in names),
        ]
        for line in _ordered(read("accuracy.jsonl"))
        if line["ranking"] == ranking
    ]
    return table(["data, longest history", "model", *(prefix + name for name in names)], rows)


def training() -> str:
    """What training cost."""
    rows = [
        [
            f"{line['dataset']}, {line['max_len']}",
            line["model"],
            str(line["epochs"]),
            f"{line['seconds_per_epoch']:.2f}",
            f"{line['peak_mib']:.0f}",
        ]
        for line in _ordered(read("accuracy.jsonl"))
        if line["ranking"] == "full"
    ]
    header = ["data, longest history", "model", "epochs", "seconds per epoch", "peak MiB"]
    return table(header, rows)


def attention(gpu: bool) -> str:
    """Time and memory of the operation, and of dense attention, over the length."""
    rows = [
        [
            f"{line['length']:,}",
            f"Blossom, {line['compress']}" if line["impl"] != "dense" else "dense",
            f"{line['forward_ms']:.1f}",
            f"{line['forward_backward_ms']:.1f}",
            f"{line['peak_mib']:.0f}",
        ]
        for line in read("speed.jsonl")
        if line["bench"] == "attention" and ("NVIDIA" in line["hardware"]) == gpu
    ]
    header = ["length", "attention", "forward, ms", "forward and backward, ms", "peak MiB"]
    return table(header, rows)


def incremental() -> str:
    """Time of one more event, and what is kept of a user, over the length of the history."""
    names = {"torch": "Blossom, {}", "dense-cache": "dense, kept", "recompute": "recomputed, {}"}
    rows = [
        [
            f"{line['length']:,}",
            names[line["impl"]].format(line["compress"]),
            f"{line['forward_ms']:.2f}",
            "" if line["impl"] == "recompute" else f"{line['peak_mib']:.1f}",
        ]
        for line in read("speed.jsonl")
        if line["bench"] == "incremental"
    ]
    return table(["events before", "attention", "one more event, ms", "kept, MiB"], rows)


def preparing() -> str:
    """Time and memory of reading and writing a log."""
    rows = [
        [line["source"], f"{line['events']:,}", f"{line['seconds']:.1f}", f"{line['peak_mib']:.0f}"]
        for line in read("data.jsonl")
        if line["bench"] == "prepare"
    ]
    return table(["source", "events", "seconds", "peak MiB"], rows)


def ranking() -> str:
    """Time and memory of ranking a large catalogue."""
    rows = [
        [
            line["ranking"],
            f"{line['items']:,}",
            f"{line['users']:,}",
            f"{line['seconds']:.0f}",
            f"{line['peak_mib']:.0f}",
        ]
        for line in read("data.jsonl")
        if line["bench"] == "ranking"
    ]
    return table(["ranking", "items", "users", "seconds", "peak MiB"], rows)


def hardware() -> str:
    """Machines and versions that the lines were measured on."""
    seen: dict[str, None] = {}
    for name in ("accuracy.jsonl", "speed.jsonl", "data.jsonl"):
        for line in read(name):
            versions = line["versions"]
            python, torch = versions["python"], versions["torch"]
            seen[f"- {line['hardware']}: Python {python}, torch {torch}\n"] = None
    return "".join(seen)


TABLES: dict[str, Callable[[], str]] = {
    "accuracy-full": lambda: accuracy("full"),
    "accuracy-uni100": lambda: accuracy("uni100"),
    "training": training,
    "attention-gpu": lambda: attention(gpu=True),
    "attention-cpu": lambda: attention(gpu=False),
    "incremental": incremental,
    "prepare": preparing,
    "ranking": ranking,
    "hardware": hardware,
}


def filled(text: str) -> str:
    """``text`` with every section filled in."""
    return SECTION.sub(lambda part: part[1] + TABLES[part[2]]() + part[3], text)


def _ordered(lines: list[Line]) -> list[Line]:
    """By data set, in the order in which it first stands, then by model."""
    order = {line["dataset"]: None for line in sorted(lines, key=lambda line: -line["max_len"])}
    places = {dataset: place for place, dataset in enumerate(order)}
    return sorted(lines, key=lambda line: (places[line["dataset"]], line["model"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page in PAGES:
        text = page.read_text()
        if filled(text) == text:
            continue
        if check:
            print(f"{page} is out of date: run  make docs")
            return 1
        page.write_text(filled(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
