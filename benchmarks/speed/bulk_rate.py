"""How many users, and items for them, are ranked in a second and written to files.

    python -m benchmarks bulk --out results/bulk.jsonl
    python -m benchmarks bulk --engine ray --users 50000

A model of random weights ranks a simulated catalogue for every user of a simulated log, as
``blossomrec recommend RUN --all`` does; once as it is, once by rules. Each is a process of its own;
peak memory is all that it ever held, the model and the making of its log included.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import alone, peak_of_process
from blossomrec.config import option

CATEGORIES = 100
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "filter, limit": {"filter": "price < 50", "max_per": {"category": 5}},
}


@dataclass(frozen=True)
class BulkSize:
    """How much is ranked."""

    users: int = option(10_000, "users of the log", low=2)
    items: int = option(50_000, "items of the catalogue", low=200)
    events: int = option(50, "mean events of a user", low=5)
    k: int = option(100, "items for each user", low=1)
    hidden: int = option(64, "size of the vectors of items", low=8)


def rank_all(size: BulkSize, name: str, engine: Literal["local", "ray"]) -> dict[str, Any]:
    """Write the recommendations of all users by some of the ``RULES``."""
    import torch

    from blossomrec.recommender import BlossomRec
    from blossomrec.rules import Rules

    with tempfile.TemporaryDirectory() as folder:
        random_run(size, Path(folder))
        recommender = BlossomRec.from_pretrained(Path(folder) / "run")
        assert recommender.log is not None
        rules = Rules(**RULES[name]) if RULES[name] else None
        # Of others on the same cores, which a figure is no better than.
        load, start = os.getloadavg()[0], time.perf_counter()
        out = Path(folder) / "recommendations.parquet"
        written = recommender.recommend_all(
            out, k=size.k, rules=rules, engine=engine, progress=False
        )
        seconds = time.perf_counter() - start
        return {
            "bench": "bulk",
            "rules": name,
            "engine": engine,
            "users": written.users,
            "items": recommender.log.num_items,
            "events": recommender.log.num_events,
            "k": size.k,
            "rows": written.rows,
            "model": f"blossom, {recommender.config.model.layers} layers, hidden {size.hidden}",
            "max_len": recommender.config.model.max_len,
            "threads": torch.get_num_threads(),
            "load": round(load, 1),
            "seconds": round(seconds, 2),
            "users_per_second": round(written.users / seconds, 1),
            "scores_per_second": round(written.users * recommender.log.num_items / seconds),
            "peak_mib": round(peak_of_process(), 1),
            **provenance(),
        }


def random_run(size: BulkSize, folder: Path) -> None:
    """A simulated log with a table of all items, and a run of a model that has learned nothing."""
    import polars as pl
    import torch

    from blossomrec.config import RunConfig, with_options
    from blossomrec.data.log import EventLog
    from blossomrec.data.simulate import SimulationConfig, simulate
    from blossomrec.models.building import build_model
    from blossomrec.models.inputs import resolve_inputs
    from blossomrec.run.weights import save_model
    from blossomrec.run.writing import write_run_config

    rng = np.random.default_rng(0)
    events = simulate(
        SimulationConfig(users=size.users, items=size.items, events_per_user=size.events)
    )
    known = events["item_id"].unique().sort()
    # Those without an event belong to the catalogue, too.
    ids = pl.concat([known, pl.Series(known.max() + 1 + np.arange(size.items - len(known)))])  # pyright: ignore[reportOperatorIssue]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "price": rng.integers(1, 101, len(ids)),
            "category": rng.integers(0, CATEGORIES, len(ids)).astype(str),
        }
    )
    log = EventLog.prepare(events, folder / "log", items=items)
    options = {"hidden_size": size.hidden, "content": "off"}
    config = resolve_inputs(with_options(RunConfig(), options), log)
    torch.manual_seed(0)
    write_run_config(folder / "run", config, log)
    save_model(folder / "run", build_model(config.model, log.num_items, log.tables))


def measure_bulk(
    *,
    size: Annotated[BulkSize, Parameter(name="*")] = BulkSize(),
    engine: Literal["local", "ray"] = "local",
    out: Path = Path("results/bulk.jsonl"),
) -> None:
    """Users for whom a catalogue is ranked in a second, with and without rules.

    Args:
        engine: who computes; Ray is started on this machine, and its start and end are part of the
            time, but the memory of its workers is not counted
        out: JSONL file to which a line for each measurement is appended
    """
    for name in RULES:
        line = alone(rank_all, size, name, engine)
        append_result(out, line)
        print(f"rules: {name}: {line['users_per_second']:,} users/s, {line['peak_mib']} MiB")
