"""Tables of a server: its load, its memory, its explanations, and of looking for the best items."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

from benchmarks.tables.measured_lines import Line, read, table


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
    """Users whose histories fit into memory, and time of a user's event and request, by length."""
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
    return table([*header, "event and request, p50, ms", "p99, ms"], rows)


def _last(field: str) -> list[Line]:
    """The last line about each load of a server that has a field; later ones replace earlier."""
    lines = {}
    for line in read("serving.jsonl"):
        if field in line and line["scenario"] != "rank":
            lines[line["scenario"], line["history"], line.get("store", "sqlite")] = line
    return [lines[key] for key in sorted(lines, key=lambda key: (key[2] != "sqlite", key[:2]))]


PHASES = {
    "before": "before",
    "reading": "the new run is read",
    "preparing": "histories are encoded for it",
    "after": "after",
}


def larger_swaps() -> str:
    """Latency while a run with more items is taken: of several servers the median and the range."""
    lines = [line for line in read("serving.jsonl") if line["scenario"] == "larger-swap"]
    # A later measurement replaces an earlier one.
    last = {line["items"]: line["commit"] for line in lines}
    rows = []
    for items, phase in itertools.product(sorted(last), PHASES):
        repeats = [
            line
            for line in lines
            if (line["items"], line["phase"], line["commit"]) == (items, phase, last[items])
        ]
        if not repeats:
            continue
        p99 = sorted(line["p99_ms"] for line in repeats)
        rows.append(
            [
                f"{items:,}",
                PHASES[phase],
                f"{statistics.median(line['seconds'] for line in repeats):.1f}",
                f"{sum(line['requests'] for line in repeats):,}",
                f"{sum(line['errors'] for line in repeats)}",
                f"{statistics.median(line['p50_ms'] for line in repeats):.1f}",
                f"{statistics.median(p99):.1f}",
                f"{p99[0]:.1f} to {p99[-1]:.1f}",
            ]
        )
    header = ["items", "while", "seconds", "requests", "errors", "p50, ms", "p99, ms"]
    return table([*header, "p99 of each server, ms"], rows)


def steps() -> str:
    """Time of one event of many users on a GPU, beside encoding all their histories again."""
    lines = {
        (line["users"], line["history"]): line
        for line in read("serving.jsonl")
        if line["scenario"] == "step"
    }
    rows = [
        [
            f"{users:,}",
            f"{history:,}",
            f"{line['step_ms']:.2f}",
            f"{line['recompute_ms']:.1f}",
            f"{line['recompute_ms'] / line['step_ms']:.0f}",
        ]
        for (users, history), line in sorted(lines.items())
    ]
    return table(["users", "events each", "one event, ms", "recomputed, ms", "speed-up"], rows)


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


def rules() -> str:
    """Time of an answer by kind of rules, of the engine and of the library."""
    last = {
        (line["where"], line["rules"]): line
        for line in read("serving.jsonl")
        if line["scenario"] == "rules"
    }
    rows = []
    for name in dict.fromkeys(name for _, name in last):
        cells = [name]
        for where in ("engine", "library"):
            own, plain = (last[where, each]["p50_ms"] for each in (name, "none"))
            cells += [f"{own:.2f}", f"{own / plain:.2f}"]
        rows.append(cells)
    times = "times as long"
    return table(["rules", "engine, p50, ms", times, "library, p50, ms", times], rows)


TABLES: dict[str, Callable[[], str]] = {
    "serving": serving,
    "serving-capacity": capacity,
    "serving-swap": larger_swaps,
    "serving-step": steps,
    "explain": explaining,
    "ranking-approximate": approximate,
    "rules": rules,
}
