"""What the engine of Ray costs on one machine: the same command by either engine, in turn.

    python -m benchmarks bulk-engines --out results/bulk.jsonl

``blossomrec recommend RUN --all`` writes recommendations for every user of a simulated log by a
model of random weights; time is that of the whole command, from its start to its end, Python,
PyTorch, Ray and its processes included. Linux only: processor time is read from ``/proc``.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.speed.bulk_rate import BulkSize, random_run
from benchmarks.speed.instruments.processor import run_counted
from blossomrec.engines import check_engine

ENGINES = ("local", "ray")
# About a minute of two cores.
SIZE = BulkSize(users=50_000, items=100_000)


def measure_engines(
    *,
    size: Annotated[BulkSize, Parameter(name="*")] = SIZE,
    runs: int = 3,
    minutes: float = 4.0,
    out: Path = Path("results/bulk.jsonl"),
) -> None:
    """Seconds of the command that recommends to all users, by engine.

    Args:
        runs: of each engine, in turn, so that a machine that changes its speed does so for both
        minutes: no more runs begin that would last longer than these in all; there is always one
        out: JSONL file to which a line for each engine is appended
    """
    import torch

    check_engine("ray")
    begun = time.monotonic()
    loads: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    counted: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        random_run(size, Path(folder))
        for _ in range(runs):
            for engine in ENGINES:
                loads[engine].append(os.getloadavg()[0])
                counted[engine].append(run_counted(_command(size, Path(folder), engine)))
                wall, processor = counted[engine][-1]
                print(f"{engine}: {wall:.1f} s, {processor:.1f} s of processors", flush=True)
            another = sum(max(walls)[0] for walls in counted.values())
            if time.monotonic() - begun + another > 60 * minutes:
                break
    for engine in ENGINES:
        line = {
            "bench": "bulk engines",
            "engine": engine,
            "users": size.users,
            "items": size.items,
            "events_each": size.events,
            "k": size.k,
            "hidden": size.hidden,
            "threads": torch.get_num_threads(),
            "load": round(max(loads[engine]), 1),
            **_seconds(counted[engine]),
            **provenance(),
        }
        append_result(out, line)


def _command(size: BulkSize, folder: Path, engine: str) -> list[str]:
    out = folder / "recommendations.parquet"
    out.unlink(missing_ok=True)
    given = [str(folder / "run"), "--all", "--k", str(size.k), "--out", str(out)]
    return [sys.executable, "-m", "blossomrec", "recommend", *given, "--engine", engine]


def _seconds(counted: list[tuple[float, float]]) -> dict[str, Any]:
    walls, processors = zip(*counted, strict=True)
    return {
        "runs": len(counted),
        "seconds": round(statistics.median(walls), 2),
        "seconds_each": [round(one, 2) for one in walls],
        "processor_seconds": round(statistics.median(processors), 2),
    }
