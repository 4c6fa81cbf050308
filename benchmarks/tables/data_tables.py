"""Tables of preparing events, and of ranking a large catalogue, also for many users."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tables.measured_lines import Line, read, table


def preparing() -> str:
    """Time and memory of reading and writing a log."""
    rows = [
        [line["source"], f"{line['events']:,}", f"{line['seconds']:.1f}", f"{line['peak_mib']:.0f}"]
        for line in read("data.jsonl")
        if line["bench"] == "prepare"
    ]
    return table(["source", "events", "seconds", "peak MiB"], rows)


def preparing_folders() -> str:
    """Time, memory and disk of reading and writing logs of several sizes."""
    rows = [
        [
            f"{line['events']:,}",
            str(line["files"]),
            f"{line['seconds']:,.0f}",
            f"{line['events_per_second']:,}",
            f"{line['peak_mib']:,.0f}",
            f"{line['bytes'] / 2**20:,.0f}",
        ]
        for line in read("data.jsonl")
        if line["bench"] == "prepare folder"
    ]
    header = ["events", "files", "seconds", "events a second", "peak MiB", "MiB on disk"]
    return table(header, rows)


def appending() -> str:
    """Time and memory of appending tables of several sizes."""
    rows = [
        [
            f"{line['appended']:,}",
            f"{line['seconds']:,.0f}",
            f"{line['appended'] / line['seconds']:,.0f}",
            f"{line['peak_mib']:,.0f}",
        ]
        for line in read("growth.jsonl")
        if line.get("bench") == "append table"
    ]
    return table(["events appended", "seconds", "events a second", "peak MiB"], rows)


def ids() -> str:
    """Memory of preparing and of opening logs with many ids; bytes an id from size to size."""
    smallest, rows = dict[str, Line](), []
    for line in read("data.jsonl"):
        if line["bench"] != "ids":
            continue
        first = smallest.setdefault(line["kind"], line)
        more = line["ids"] - first["ids"]
        bytes_each = (line["peak_mib"] - first["peak_mib"]) * 2**20 / more if more > 0 else None
        rows.append(
            [
                line["kind"],
                f"{line['ids']:,}",
                f"{line['seconds']:,.0f}",
                f"{line['peak_mib']:,.0f}",
                "" if bytes_each is None else f"{bytes_each:.0f}",
                f"{line['open_seconds']:.2f}",
                f"{line['check_seconds']:.1f}",
                f"{line['open_mib']:.0f}",
                f"{line['lookup_us']:.1f}",
            ]
        )
    header = ["ids", "how many", "prepare, s", "peak MiB", "bytes for each more"]
    return table([*header, "open, s", "check, s", "open, MiB", "lookup, µs"], rows)


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


def bulk() -> str:
    """Rate and memory of writing recommendations for all users of a log, where nobody else had more
    to do than there are cores.
    """
    rows = [
        [
            line["rules"],
            # Lines of before there was another one do not name it.
            line.get("engine", "local"),
            f"{line['users']:,}",
            f"{line['items']:,}",
            f"{line['events']:,}",
            str(line["k"]),
            str(line["threads"]),
            str(line["load"]),
            f"{line['users_per_second']:,.0f}",
            f"{line['scores_per_second'] / 1e6:,.0f}",
            f"{line['peak_mib']:,.0f}",
        ]
        for line in read("bulk.jsonl")
        if line["bench"] == "bulk" and line["load"] <= line["threads"]
    ]
    header = ["rules", "engine", "users", "items", "events", "k", "threads", "load"]
    return table([*header, "users a second", "million scores a second", "peak MiB"], rows)


def bulk_engines() -> str:
    """Time of the same command by either engine; the last measurement of each size."""
    lines = [line for line in read("bulk.jsonl") if line["bench"] == "bulk engines"]
    sizes = {(line["users"], line["items"], line["k"], line["engine"]): line for line in lines}
    rows = []
    for (*size, engine), line in sizes.items():
        local = sizes[(*size, "local")]
        rows.append(
            [
                engine,
                *(f"{one:,}" for one in size),
                str(line["threads"]),
                str(line["runs"]),
                str(line["load"]),
                f"{line['seconds']:.1f}",
                f"{line['processor_seconds']:.1f}",
                f"{line['seconds'] / local['seconds']:.2f}",
                f"{line['processor_seconds'] / local['processor_seconds']:.2f}",
            ]
        )
    header = ["engine", "users", "items", "k", "threads", "runs", "load", "seconds"]
    ratios = ["seconds / local's", "of processors / local's"]
    return table([*header, "of processors", *ratios], rows)


TABLES: dict[str, Callable[[], str]] = {
    "append": appending,
    "bulk": bulk,
    "bulk-engines": bulk_engines,
    "ids": ids,
    "prepare": preparing,
    "prepare-folders": preparing_folders,
    "ranking": ranking,
}
