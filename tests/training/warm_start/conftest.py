"""Logs of two periods, and runs on the first one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_training import small_config, small_train
from two_periods import SEES_ALL, SIMULATED, two_periods

from blossomrec.data.log import EventLog
from blossomrec.data.simulate import SimulationConfig, simulate


@pytest.fixture(scope="session")
def periods():
    return two_periods()


@pytest.fixture(scope="session")
def first_log(periods, tmp_path_factory):
    return periods.prepare(tmp_path_factory.mktemp("first") / "log", whole=False, tables=False)


@pytest.fixture(scope="session")
def both_log(periods, tmp_path_factory):
    return periods.prepare(tmp_path_factory.mktemp("both") / "log", whole=True, tables=False)


@pytest.fixture(scope="session")
def first_tables(periods, tmp_path_factory):
    return periods.prepare(tmp_path_factory.mktemp("first") / "log", whole=False, tables=True)


@pytest.fixture(scope="session")
def both_tables(periods, tmp_path_factory):
    return periods.prepare(tmp_path_factory.mktemp("both") / "log", whole=True, tables=True)


@pytest.fixture(scope="session")
def old_run(one_thread, first_log, tmp_path_factory):
    """A run on the first period that sees ids alone. Read only."""
    run = tmp_path_factory.mktemp("old") / "run"
    small_train(first_log, small_config(ema_decay=0.9), run)
    return run


@pytest.fixture(scope="session")
def seeing_run(one_thread, first_tables, tmp_path_factory):
    """A run on the first period that sees all there is. Read only."""
    run = tmp_path_factory.mktemp("seeing") / "run"
    small_train(first_tables, small_config(backbone="gru4rec", **SEES_ALL), run)
    return run


@dataclass(frozen=True)
class Simulated:
    """Simulated events up to a time without a tenth of the items, all of them, and a run on the
    first."""

    first: EventLog
    both: EventLog
    run: Path


@pytest.fixture(scope="session")
def simulated(one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    size = SimulationConfig(users=200, items=300, events_per_user=30, seed=1)
    events = simulate(size)
    items = events["item_id"].unique(maintain_order=True)
    late = items.gather(np.random.default_rng(0).choice(len(items), 30, replace=False))
    is_first = pl.col("timestamp") <= events["timestamp"].quantile(0.7)
    first = events.filter(is_first & ~pl.col("item_id").is_in(late.implode()))
    both = events.filter(~is_first | ~pl.col("item_id").is_in(late.implode()))
    logs = [
        EventLog.prepare(each, folder / name) for name, each in (("first", first), ("both", both))
    ]
    small_train(logs[0], small_config(**SIMULATED), folder / "run")
    return Simulated(*logs, folder / "run")
