"""Fill the tables of README.md and docs/, and draw the pictures, from the lines in results/.

    python benchmarks/measured.py            # write them
    python benchmarks/measured.py --check    # fail where one is out of date

A table stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``. A picture is drawn again
where its description says that it is of other lines.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from statistics import mean

import claims
import selector_tables
import speed_tables
from tables import ROOT, Line, read, table, trainings

from blossomrec.bench.plots import draw, fingerprint

PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("measured", "selector", "serving")),
)
IMAGES = ROOT / "docs" / "images"
SECTION = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


def serving() -> str:
    """Throughput and latency of a server."""
    names = {"sqlite": "", "redis": ", Redis"}
    rows = [
        [
            line["scenario"] + names[line.get("store", "sqlite")],
            f"{line['history']:,}",
            f"{line['users']:,}",
            f"{line['requests']:,}",
            str(line["errors"]),
            f"{line['throughput']:,.0f}",
            *(f"{line[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
        ]
        for line in _last("throughput")
    ]
    header = ["scenario", "events each", "users", "requests", "errors", "a second"]
    return table([*header, "p50, ms", "p95, ms", "p99, ms"], rows)


def capacity() -> str:
    """Users whose histories fit into memory, and time of a user's event and question, by length."""
    one = [line for line in _last("throughput") if line.get("store", "sqlite") == "sqlite"]
    pairs = {line["history"]: line for line in one if line["scenario"] == "pair"}
    rows = [
        [
            f"{line['history']:,}",
            f"{line['kib_per_user']:,.0f}",
            f"{2**20 / line['kib_per_user']:,.0f}",
            *(f"{pairs[line['history']][name]:.1f}" for name in ("p50_ms", "p99_ms")),
        ]
        for line in _last("kib_per_user")
    ]
    header = ["events each", "KiB a user", "users in a GiB"]
    return table([*header, "event and question, p50, ms", "p99, ms"], rows)


def _last(field: str) -> list[Line]:
    """The last line about each load of a server that has a field; later ones replace earlier."""
    lines = {}
    for line in read("serving.jsonl"):
        if field in line and line["scenario"] != "rank":
            lines[line["scenario"], line["history"], line.get("store", "sqlite")] = line
    return [lines[key] for key in sorted(lines, key=lambda key: (key[2] != "sqlite", key[:2]))]


def explaining() -> str:
    """Change of the best recommendation's score, by which five events are removed."""
    names = {
        "explained": "the five that raise the score most",
        "last": "the last five",
        "attended": "the five with the most attention in the last layer",
        "random_recent": "five of the last twenty",
        "random": "five at random",
    }
    lines = [line for line in read("serving.jsonl") if line["scenario"] == "explain"]
    rows = [
        [text, *(f"{line['change'][name]:.2f}" for line in lines)] for name, text in names.items()
    ]
    return table(["removed", *(line["dataset"] for line in lines)], rows)


def approximate() -> str:
    """Time and recall of looking for the best items in some of the lists."""
    rows = [
        [
            f"{line['probes']}" if line["probes"] else "all items",
            f"{line['recall']:.3f}",
            *(f"{line[name]:.2f}" for name in ("p50_ms", "p99_ms")),
        ]
        for line in read("serving.jsonl")
        if line["scenario"] == "rank"
    ]
    return table(["lists", "recall@10", "p50, ms", "p99, ms"], rows)


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
    for name in ("accuracy", "lengths", "speed", "data", "selector", "serving"):
        for line in read(f"{name}.jsonl"):
            versions = line["versions"]
            python, torch = versions["python"], versions["torch"]
            seen[f"- {line['hardware']}: Python {python}, torch {torch}\n"] = None
    return "".join(seen)


TABLES: dict[str, Callable[[], str]] = {
    "accuracy-full": lambda: accuracy("full"),
    "accuracy-uni100": lambda: accuracy("uni100"),
    "accuracy-short": accuracy_in_short,
    "lengths": lengths,
    **speed_tables.TABLES,
    **claims.TABLES,
    "prepare": preparing,
    "ranking": ranking,
    "recall": lambda: selector_tables.recall("recall", "2866-5734"),
    "recall-short": lambda: selector_tables.recall("recall", "178-358"),
    "recall-control": lambda: selector_tables.recall("recall-control", "1-16"),
    "recall-sizes": selector_tables.sizes,
    "recall-drift": selector_tables.drift,
    "gradient-norms": selector_tables.gradients,
    "coverage": lambda: selector_tables.coverage(long=False),
    "coverage-long": lambda: selector_tables.coverage(long=True),
    "pooling": selector_tables.pooling,
    "teaching-cost": selector_tables.teaching_cost,
    "serving": serving,
    "serving-capacity": capacity,
    "explain": explaining,
    "ranking-approximate": approximate,
    "hardware": hardware,
}


def filled(text: str) -> str:
    """``text`` with every section filled in."""
    return SECTION.sub(lambda part: part[1] + TABLES[part[2]]() + part[3], text)


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
    for name, (bench, lines) in speed_tables.PICTURES.items():
        path = IMAGES / f"{name}.svg"
        if path.exists() and fingerprint(lines(), bench) in path.read_text():
            continue
        if check:
            print(f"{path} is out of date: run  make docs")
            return 1
        draw(lines(), bench, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
