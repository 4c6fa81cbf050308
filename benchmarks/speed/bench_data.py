"""Time and peak memory of preparing events, and of ranking a million items.

    python -m benchmarks data --out results/data.jsonl
    python -m benchmarks data-sizes --events 1000000 10000000 --out results/data.jsonl

Each measurement runs in a process of its own; peak memory is all that the process ever held.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import alone, peak_of_process
from blossomrec.errors import whole_number

EVENTS, USERS, ITEMS = 10_000_000, 100_000, 200_000
RANKED_ITEMS, RANKED_USERS, HIDDEN = 1_000_000, 10_000, 64
SIZES = (1_000_000, 10_000_000, 50_000_000, 200_000_000)
SOURCES = ("integers.parquet", "integers.csv", "strings.csv")


def write_sources(folder: Path) -> None:
    """Simulated events in no order, as Parquet and CSV, and once with text ids and ISO times."""
    import polars as pl

    from blossomrec.data.simulate import SimulationConfig, simulate

    size = SimulationConfig(
        users=USERS, items=ITEMS, events_per_user=EVENTS / USERS, max_events=2_000, interests=200
    )
    events = simulate(size).sample(fraction=1.0, shuffle=True, seed=0)
    events.write_parquet(folder / "integers.parquet")
    events.write_csv(folder / "integers.csv")
    text = events.with_columns(
        pl.format("user-{}", "user_id").alias("user_id"),
        pl.format("item-{}", "item_id").alias("item_id"),
        pl.from_epoch("timestamp").dt.to_string("iso").alias("timestamp"),
    )
    text.write_csv(folder / "strings.csv")


def prepare(folder: Path, source: str) -> dict[str, Any]:
    """Read, check, sort and write one of the sources."""
    from blossomrec.data.log import EventLog

    start = time.perf_counter()
    log = EventLog.prepare(folder / source, folder / "log")
    return {"bench": "prepare", "source": source, "events": log.num_events} | _cost(start)


def write_folder(folder: Path, events: int) -> None:
    """Simulated events as Parquet files, of users who have a hundred each on average."""
    from blossomrec.data.simulate import SimulationConfig, simulate_folder

    size = SimulationConfig(
        users=events // 100, items=ITEMS, events_per_user=100, max_events=2_000, interests=200
    )
    simulate_folder(size, folder)


def prepare_folder(source: Path, log: Path) -> dict[str, Any]:
    """Read, check, sort and write a folder of Parquet files; bytes are those of the log."""
    from blossomrec.data.log import EventLog

    start = time.perf_counter()
    events = EventLog.prepare(source, log).num_events
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in log.rglob("*") if path.is_file())
    line = {"bench": "prepare folder", "events": events, "events_per_second": int(events / seconds)}
    return line | {"files": len(list(source.iterdir())), "bytes": size} | _cost(start)


def rank(ranking: Any) -> dict[str, Any]:
    """Rank a large catalogue for many users, by random embeddings."""
    import polars as pl
    import torch

    from blossomrec.config import EvaluationConfig, ModelConfig
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import make_split
    from blossomrec.evaluation import RankingOptions, evaluate
    from blossomrec.models import build_model

    rng = np.random.default_rng(0)
    # Every item once, so that the catalogue is as large as it should be.
    items = rng.permutation(RANKED_ITEMS)
    users = rng.integers(0, RANKED_USERS, RANKED_ITEMS)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(items))})
    log = EventLog.prepare(frame)
    del frame
    torch.manual_seed(0)
    sizes = ModelConfig(hidden_size=HIDDEN, heads=4, kv_heads=2, inner_size=128, max_len=50)
    model = build_model(sizes, log.num_items)
    cases = make_split(log, EvaluationConfig()).test
    start = time.perf_counter()
    evaluate(model, log, cases, RankingOptions(ranking=ranking, filter_seen=True))
    line = {"bench": "ranking", "ranking": ranking, "items": log.num_items, "users": len(cases)}
    return line | _cost(start)


def _cost(start: float) -> dict[str, Any]:
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_mib": round(peak_of_process(), 1),
        **provenance(),
    }


def measure_data(*, out: Path = Path("results/data.jsonl")) -> None:
    """Time and peak memory of preparing ten million events, and of ranking a million items.

    Args:
        out: JSONL file to which a line for each measurement is appended
    """
    with tempfile.TemporaryDirectory() as folder:
        alone(write_sources, Path(folder))
        for source in SOURCES:
            line = alone(prepare, Path(folder), source)
            append_result(out, line)
            print(f"{source}: {line['seconds']} s, {line['peak_mib']} MiB")
    for ranking in ("full", "uni100"):
        line = alone(rank, ranking)
        append_result(out, line)
        print(f"{ranking}: {line['seconds']} s, {line['peak_mib']} MiB")


def measure_sizes(
    *,
    events: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = SIZES,
    out: Path = Path("results/data.jsonl"),
) -> None:
    """Time and peak memory of preparing folders of Parquet files of several sizes.

    Args:
        events: numbers of events, about
        out: JSONL file to which a line for each measurement is appended
    """
    for size in events:
        whole_number("events", size, low=1_000)
        with tempfile.TemporaryDirectory() as folder:
            source, log = Path(folder) / "events", Path(folder) / "log"
            alone(write_folder, source, size)
            line = alone(prepare_folder, source, log)
        append_result(out, line)
        told = f"{line['seconds']} s, {line['events_per_second']:,} events a second"
        print(f"{line['events']:,}: {told}, {line['peak_mib']} MiB", flush=True)
