"""Time and peak memory of a log that grows: appending little to much, merging, forgetting a user.

    python -m benchmarks growth --out results/growth.jsonl

The log is made of parts of random events, the first one prepared, the others appended and merged.
Each measurement runs in a process of its own; peak memory is all that the process ever held, also
pages of the log that the system had in memory anyway, and PyTorch, which the bench imports and an
append does not.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import alone, peak_of_process
from blossomrec.errors import whole_number

USERS, ITEMS = 1_000_000, 200_000
FIRST_SECOND, SECONDS = 1_600_000_000, 100_000_000


def write_events(path: Path, events: int, seed: int, new: float = 0.0) -> None:
    """Random events of text ids; the share ``new`` of users and items are new ones."""
    import polars as pl

    rng = np.random.default_rng(seed)
    users = rng.integers(0, int(USERS * (1 + new)), events)
    items = (rng.random(events) ** 3 * ITEMS * (1 + new)).astype(np.int64)
    times = rng.integers(FIRST_SECOND, FIRST_SECOND + SECONDS, events)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    frame.with_columns(pl.format("user-{}", "user_id").alias("user_id")).write_parquet(path)


def prepare(source: Path, log: Path) -> dict[str, Any]:
    """The first part."""
    from blossomrec.data.log import EventLog

    start = time.perf_counter()
    return {"bench": "prepare", "events": EventLog.prepare(source, log).num_events} | _cost(start)


def append(source: Path, log: Path) -> dict[str, Any]:
    """Append a table, without opening the log."""
    from blossomrec.data.growth.append import append_events
    from blossomrec.data.growth.options import AppendOptions

    start = time.perf_counter()
    new = append_events(source, log, AppendOptions())
    return {"bench": "append", "appended": new.events, "late": new.late} | _cost(start)


def merge(log: Path) -> dict[str, Any]:
    """Merge what was appended."""
    from blossomrec.data.growth.compact import compact_folder

    start = time.perf_counter()
    return {"bench": "merge", "segments": compact_folder(log)} | _cost(start)


def forget(log: Path) -> dict[str, Any]:
    """Write the log anew without a user."""
    from blossomrec.data.growth.forget import forget_user

    start = time.perf_counter()
    return {"bench": "forget", "removed": forget_user(log, f"user-{USERS // 2}").events} | _cost(
        start
    )


def _cost(start: float) -> dict[str, Any]:
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_mib": round(peak_of_process(), 1),
    }


def measure_growth(
    *,
    parts: int = 10,
    events: int = 10_000_000,
    appended: int = 100_000,
    out: Path = Path("results/growth.jsonl"),
) -> None:
    """Time and peak memory of appending to a large log, of merging it and of forgetting a user.

    Args:
        parts: of which the log is made
        events: of each part
        appended: events of a table that is appended to the log
        out: JSONL file to which a line for each measurement is appended
    """
    whole_number("parts", parts)
    with tempfile.TemporaryDirectory() as folder:
        table, log = Path(folder) / "events.parquet", Path(folder) / "log"
        for part in range(parts):
            alone(write_events, table, events, part)
            alone(append if part else prepare, table, log)
        if parts > 1:
            alone(merge, log)
        for number in range(3):
            alone(write_events, table, appended, parts + number, 0.01)
            _publish(alone(append, table, log), parts * events, out)
        for function in (merge, forget):
            _publish(alone(function, log), parts * events + 3 * appended, out)


def measure_append(
    *,
    events: int = 1_000_000,
    appended: tuple[int, ...] = (1_000_000, 10_000_000, 30_000_000),
    out: Path = Path("results/growth.jsonl"),
) -> None:
    """Time and peak memory of appending tables of several sizes to a log.

    Args:
        events: of the log
        appended: events of each table
        out: JSONL file to which a line for each measurement is appended
    """
    with tempfile.TemporaryDirectory() as folder:
        table, log = Path(folder) / "events.parquet", Path(folder) / "log"
        alone(write_events, table, events, 0)
        alone(prepare, table, log)
        for number, size in enumerate(appended, 1):
            alone(write_events, table, size, number, 0.01)
            _publish(alone(append, table, log) | {"bench": "append table"}, events, out)


def _publish(measured: dict[str, Any], events: int, out: Path) -> None:
    line = {**measured, "events": events, **provenance()}
    append_result(out, line)
    print(f"{line['bench']}: {line['seconds']} s, {line['peak_mib']} MiB", flush=True)
