"""What one rank trains, and two do once, on processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ranks_cases import BEGUN, CASES, PLAIN, RESUMED, each_rank, evaluated, run_case, run_from
from two_periods import two_periods

from blossomrec.data.log import EventLog
from forked_commands import forked_ranks


@pytest.fixture(scope="session")
def log(tiny_events, tmp_path_factory) -> EventLog:
    """The tiny log with a table of its items, and events that do not count alike."""
    items = tiny_events["item_id"].unique().sort()
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "item_id": items,
            "genre": [f"g{n % 5}" for n in range(len(items))],
            "price": rng.random(len(items)).astype(np.float32),
        }
    )
    folder = tmp_path_factory.mktemp("shared") / "log"
    events = tiny_events.with_columns(weight=pl.int_range(pl.len()) % 4 / 2)
    return EventLog.prepare(events, folder, items=table, weight="weight")


@pytest.fixture(scope="session")
def periods(tmp_path_factory) -> dict[str, EventLog]:
    """Logs of the first of two periods and of both, with tables."""
    folder, events = tmp_path_factory.mktemp("periods"), two_periods()
    return {
        name: events.prepare(folder / name, whole=name == "both", tables=True)
        for name in ("first", "both")
    }


@pytest.fixture(scope="session")
def trained(one_thread, log, periods, tmp_path_factory) -> Path:
    """The folder of what one rank trained, in ``one`` and half in ``one-two``, and two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    for name, options in CASES.items():
        run_case(log, PLAIN | options, folder / "one" / name)
    for name in RESUMED:
        run_case(log, PLAIN | CASES[name], folder / "one-two" / name, last=2)
    for name, options in BEGUN.items():
        run_case(periods["first"], options, folder / "first-one" / name)
        run_from(periods["both"], folder, name, "one-one")
        evaluated(periods["first"], folder / "first-one" / name, folder / "evaluated-one")
    ranks = forked_ranks(2, each_rank, log, periods["first"], periods["both"], folder)
    assert all(one.code == 0 for one in ranks), ranks
    for name in RESUMED:
        run_case(log, PLAIN | CASES[name], folder / "two-one" / name)
    for name in BEGUN:
        run_from(periods["both"], folder, name, "two-one")
    return folder
