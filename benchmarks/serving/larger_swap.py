"""A swap to a larger vocabulary, in another order, under load: latency before, in and after it.

    python -m benchmarks swap --out results/serving.jsonl

The server runs in a process of its own, the load in this one, on the same machine. Half of the
requests append an event of any item of the larger vocabulary, half ask for ten items, of a random
user each, 100 a second at random moments; ``before`` the swap, while the new run is read
(``reading``), while histories are encoded for it (``preparing``), and ``after`` it is used. Weights
are random, and so are histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import polars as pl
import torch
from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.serving.load import Outcome, Request, at_a_rate, mixed, uncollected
from benchmarks.serving.server_load import LONGEST, warm
from blossomrec.config import ModelConfig, RunConfig, option
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.models.building import build_model
from blossomrec.run.description import RunInfo
from blossomrec.run.tables import Known
from blossomrec.run.writing import write_model
from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.bulk import import_events

RATE = 100
# Lines of the server's log that end a phase.
READ, SERVING = re.compile(r"read version"), re.compile(r"serving version")
# A server that has not got on by then never will.
PATIENCE = 600


@dataclass(frozen=True)
class Swap:
    """What is swapped, and under which load."""

    items: int = option(100_000, "items before the swap", low=10)
    growth: float = option(0.1, "share of items that are new with it", low=0)
    users: int = option(500, "users with a history", low=1)
    history: int = option(500, "events of a history", low=1)
    seconds: float = option(15.0, "how long the load is before the swap, and after it", low=1)
    repeats: int = option(3, "servers, one after the other", low=1)


def write_untrained(folder: Path, ids: np.ndarray, seed: int) -> Path:
    """A run with random weights, for items in this order."""
    torch.manual_seed(seed)
    config = RunConfig(model=ModelConfig())
    vocabulary = Vocabulary(pl.Series(ids))
    model = build_model(config.model, vocabulary.size)
    info = RunInfo(config, vocabulary.size, vocabulary.fingerprint, folder, None, True)
    write_model(folder, info, Known(vocabulary, None, None), model)
    return folder


def write_runs(folder: Path, swap: Swap) -> tuple[Path, Path, list[Any]]:
    """The run before, the one after, whose rows are others, and the items of the latter."""
    rng = np.random.default_rng(0)
    ids = rng.choice(2**40, round(swap.items * (1 + swap.growth)), replace=False)
    old = write_untrained(folder / "old", ids[: swap.items], 0)
    return old, write_untrained(folder / "new", rng.permutation(ids), 1), ids.tolist()


def fill_store(where: Path, swap: Swap, items: list[Any]) -> list[str]:
    """A store of random histories of the items before the swap; gives the users."""
    users, rng = [f"u{number}" for number in range(swap.users)], np.random.default_rng(1)
    table = pl.DataFrame(
        {
            "user_id": np.repeat(users, swap.history),
            "item_id": rng.choice(items[: swap.items], swap.users * swap.history),
            "timestamp": np.tile(np.arange(swap.history), swap.users),
        }
    )
    store = store_opener(str(where))[0]()
    import_events(table, store)
    store.close()
    return users


class Log(threading.Thread):
    """Reads the log of a server, and remembers when a line was first written.

    Attributes:
        lines: that have been read.
    """

    def __init__(self, stream: IO[str]):
        super().__init__(daemon=True)
        self._stream, self.lines = stream, list[str]()
        self.start()

    def run(self) -> None:
        for line in self._stream:
            self.lines.append(line)

    def has(self, wanted: re.Pattern[str]) -> bool:
        """Whether there was such a line."""
        return any(map(wanted.search, self.lines))


@contextlib.contextmanager
def serving(run: Path, store: Path) -> Iterator[tuple[int, subprocess.Popen[str], Log]]:
    """A server in a process of its own; gives its port, the process and its log."""
    command = [sys.executable, "-m", "blossomrec", "serve", str(run), "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--max-len", str(LONGEST)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        log = Log(process.stderr)
        found = re.search(r"http://[^:]+:(\d+)", process.stdout.readline())
        assert found is not None, "".join(log.lines)
        yield int(found[1]), process, log
    finally:
        process.terminate()
        process.wait()


async def until(log: Log, wanted: re.Pattern[str], over: asyncio.Event) -> None:
    """Set an event when there is a line in a log."""
    end = time.monotonic() + PATIENCE
    while not log.has(wanted):
        assert time.monotonic() < end, "".join(log.lines)
        await asyncio.sleep(0.01)
    over.set()


async def phase(port: int, request: Request, log: Log, wanted: re.Pattern[str]) -> Outcome:
    """Load until there is a line in the log of the server."""
    over = asyncio.Event()
    waiting = asyncio.create_task(until(log, wanted, over))
    outcome = await at_a_rate(port, request, rate=RATE, seconds=PATIENCE, over=over)
    await waiting
    return outcome


async def swapped(
    port: int, process: subprocess.Popen[str], log: Log, request: Request, seconds: float
) -> dict[str, Outcome]:
    """What came of the load in each phase of a swap."""
    found = {"before": await at_a_rate(port, request, rate=RATE, seconds=seconds)}
    process.send_signal(signal.SIGHUP)
    found["reading"] = await phase(port, request, log, READ)
    found["preparing"] = await phase(port, request, log, SERVING)
    found["after"] = await at_a_rate(port, request, rate=RATE, seconds=seconds)
    # A small run may be taken between two requests.
    return {name: outcome for name, outcome in found.items() if outcome.seconds}


def line(swap: Swap, name: str, outcome: Outcome) -> dict[str, Any]:
    """The line of a phase."""
    measures = outcome.measures()
    del measures["throughput"]
    return {
        "scenario": "larger-swap",
        "phase": name,
        "items": swap.items,
        "growth": swap.growth,
        "users": swap.users,
        "history": swap.history,
        "rate": RATE,
        "seconds": round(outcome.duration, 2),
        **measures,
        "max_ms": round(max(outcome.seconds) * 1e3, 3),
        **provenance(),
    }


def measure_swap(
    *, swap: Annotated[Swap, Parameter(name="*")] = Swap(), out: Path | None = None
) -> None:
    """Latency while a run with more items, in other rows, is taken under 100 requests a second.

    Args:
        out: JSONL file to which lines are appended; none without it
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old, new, items = write_runs(folder, swap)
        users = fill_store(folder / "events.sqlite", swap, items)
        for repeat in range(swap.repeats):
            link = folder / f"current-{repeat}"
            link.symlink_to(old)
            with serving(link, folder / "events.sqlite") as (port, process, log):
                asyncio.run(warm(port, users))
                (folder / "next").symlink_to(new)
                os.replace(folder / "next", link)
                request = mixed(users, items, seed=repeat)
                with uncollected():
                    found = asyncio.run(swapped(port, process, log, request, swap.seconds))
            for phase_name, outcome in found.items():
                measured = line(swap, phase_name, outcome)
                if out is not None:
                    append_result(out, measured)
                shown = ("seconds", "requests", "errors", "p50_ms", "p99_ms", "max_ms")
                print(phase_name, *(f"{each} {measured[each]}" for each in shown), flush=True)
