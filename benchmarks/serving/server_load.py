"""Throughput and latency of a server with kept histories, beside one that recomputes them.

    blossomrec train LOG RUN --model.max-len 2400
    python -m benchmarks serving RUN --out results/serving.jsonl
    python -m benchmarks serving RUN --out results/serving.jsonl --store redis://127.0.0.1:6379/9

The server runs in a process of its own, the load in this one, on the same machine. Requests are
half appends of one event and half requests for ten items, of a random user each:

- ``memory``: what a kept history takes, by its length;
- ``cold``: the first request for every user;
- ``mixed``: as many as 16 connections take; ``mixed-100``: 100 a second at random moments;
- ``swap``: these 100 a second while a new model is read, prepared and used;
- ``recompute``: the same load on a server whose cache holds nothing, so that every request
  encodes the whole history;
- ``pair``: one append and one request after it, one at a time, by length of the history;
- ``soak`` (with ``--soak MINUTES``): mixed load with bad requests and users that come and go, under
  a small cache; ``rss_mib`` is the memory of the server, minute by minute.

With ``--store`` the events are in another place than an SQLite file. It must be empty, and is only
emptied by whoever gave it; ``memory`` and ``recompute`` are not measured again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.serving.load import (
    Connection,
    Outcome,
    Request,
    as_fast_as_possible,
    at_a_rate,
    mixed,
)
from blossomrec.config import option
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.run.description import read_run_config
from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.bulk import import_events

LENGTHS = (200, 2_000, 20_000)
PAIRS = 300
# Users with each of these lengths, so that no history is that of one user alone.
PAIR_USERS = 4
LONGEST = 32_768


@dataclass(frozen=True)
class Load:
    """How large the load on a server is."""

    users: int = option(1_000, "users with a history")
    history: int = option(2_000, "events of a history")
    seconds: float = option(30.0, "how long each load is")
    cache_mib: int = option(4_096, "cache of the server")


def fill_store(where: str, run: Path, users: int, history: int) -> list[Any]:
    """A store of random histories; gives the items."""
    vocabulary = Vocabulary.open(run / "vocabulary")
    rng = np.random.default_rng(0)
    names = [f"u{number}" for number in range(users)]
    lengths = [history] * users
    for length in LENGTHS:
        names += [f"l{length}-{number}" for number in range(PAIR_USERS)]
        lengths += [length] * PAIR_USERS
    rows = rng.integers(0, vocabulary.size, sum(lengths))
    table = pl.DataFrame(
        {
            "user_id": np.repeat(names, lengths),
            "item_id": vocabulary.ids(rows),
            "timestamp": np.concatenate([np.arange(length) for length in lengths]),
        }
    )
    store = store_opener(where)[0]()
    assert not store.members(1), f"{where} holds events"
    import_events(table, store)
    store.close()
    return vocabulary.ids(np.arange(vocabulary.size)).to_list()


@contextlib.contextmanager
def serving(run: Path, store: str, *flags: Any) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a process of its own; gives its port and the process."""
    command = [sys.executable, "-m", "blossomrec", "serve", str(run), "--store", store]
    command += ["--port", "0", "--max-len", str(LONGEST), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://[^:]+:(\d+)", process.stdout.readline())
        assert found is not None
        yield int(found[1]), process
    finally:
        process.terminate()
        process.wait()


def request(user: str) -> Request:
    """One request for a user."""

    async def request(connection: Connection) -> bool:
        status, _ = await connection.ask("POST", "/v1/recommend", {"user_id": user})
        return status == 200

    return request


async def warm(port: int, users: list[str]) -> Outcome:
    """Ask once for every user, so that all histories are encoded."""
    outcome, waiting, start = Outcome(), list(users), time.perf_counter()

    async def work() -> None:
        connection = await Connection.open(port)
        while waiting:
            begun = time.perf_counter()
            outcome.errors += not await request(waiting.pop())(connection)
            outcome.seconds.append(time.perf_counter() - begun)
        connection.close()

    await asyncio.gather(*(work() for _ in range(8)))
    outcome.duration = time.perf_counter() - start
    return outcome


async def pairs(port: int, items: list[Any]) -> dict[int, Outcome]:
    """Time of an append and a request after it, one length of the history after another."""
    outcomes = {length: Outcome() for length in LENGTHS}
    draw, connection = random.Random(2), await Connection.open(port)
    for number in range(PAIRS + 20):
        for length, outcome in outcomes.items():
            user = f"l{length}-{number % PAIR_USERS}"
            event = {"events": [{"item": draw.choice(items)}]}
            start = time.perf_counter()
            status, _ = await connection.ask("POST", f"/v1/users/{user}/events", event)
            good = status == 200 and await request(user)(connection)
            # The first rounds encode the histories.
            if number >= 20:
                outcome.seconds.append(time.perf_counter() - start)
                outcome.duration += outcome.seconds[-1]
                outcome.errors += not good
    connection.close()
    return outcomes


def messy(users: list[str], items: list[Any]) -> Request:
    """Mixed load, every fifth request of which is wrong, or deletes or makes a user."""
    draw, good = random.Random(3), mixed(users, items, seed=4)
    bad = [
        ("POST", "/v1/recommend", {"k": 10**9, "history": items[:1]}),
        ("POST", "/v1/recommend", {"history": ["?"] * 5_000}),
        ("POST", "/v1/users/x/events", {"events": [{"item": "?" * 300}] * 1_000}),
        ("GET", "/v1/users/" + "y" * 3_000, None),
        ("POST", "/v1/similar", [[[[]]]] * 1_000),
        ("PUT", "/nothing", None),
    ]

    async def request(connection: Connection) -> bool:
        if draw.random() < 0.8:
            return await good(connection)
        user = f"guest{draw.randrange(10_000)}"
        event = {"events": [{"item": draw.choice(items), "key": "k"}]}
        others = [
            ("POST", f"/v1/users/{user}/events", event),
            ("DELETE", f"/v1/users/{user}", None),
        ]
        status, _ = await connection.ask(*draw.choice(bad + others))
        return status < 500

    return request


async def metric(port: int, name: str) -> float:
    """One of the measures of the server."""
    connection = await Connection.open(port)
    _, text = await connection.ask("GET", "/metrics")
    connection.close()
    found = re.search(rf"^{re.escape(name)} (\S+)".encode(), text, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def kept_kib(port: int) -> dict[int, float]:
    """What a history takes in the memory of a server that has just started, by its length."""
    sizes, before = {}, 0.0
    for length in LENGTHS:
        await warm(port, [f"l{length}-{number}" for number in range(PAIR_USERS)])
        after = await metric(port, "blossomrec_cache_bytes")
        sizes[length] = round((after - before) / PAIR_USERS / 1024, 1)
        before = after
    return sizes


async def swapped(
    port: int, process: subprocess.Popen[str], request: Request, seconds: float
) -> Outcome:
    """Load while a model is read again and prepared, and for so long after it is used."""
    whole, taken = Outcome(), False
    process.send_signal(signal.SIGHUP)
    while not taken:
        taken = await metric(port, 'blossomrec_reloads_total{outcome="taken"}') > 0
        part = await at_a_rate(port, request, rate=100, seconds=seconds if taken else 5)
        whole.add(part)
    return whole


async def soak(port: int, request: Request, minutes: float) -> tuple[Outcome, list[float]]:
    """Load for so long; the memory at the end of each minute."""
    whole, memory = Outcome(), []
    for _ in range(round(minutes)):
        part = await as_fast_as_possible(port, request, connections=8, seconds=60)
        whole.add(part)
        memory.append(round(await metric(port, "process_resident_memory_bytes") / 2**20, 1))
        print(f"  {memory[-1]:.0f} MiB", flush=True)
    return whole, memory


class Report:
    """Prints what was measured, and appends it to a results file."""

    def __init__(self, run: Path, out: Path | None, store: str):
        model = read_run_config(run).config.model
        self._out, self.store = out, store
        self._model = f"{model.attention}, {model.layers} layers, hidden {model.hidden_size}"

    def add(
        self,
        scenario: str,
        users: int,
        history: int,
        rate: float | None,
        outcome: Outcome,
        **more: Any,
    ) -> None:
        measures = {"rate": rate, **outcome.measures(), **more}
        self.append(scenario, users, history, measures)

    def append(self, scenario: str, users: int, history: int, measures: dict[str, Any]) -> None:
        line = {
            "scenario": scenario,
            "model": self._model,
            "store": self.store,
            "users": users,
            "history": history,
            **measures,
            **provenance(),
        }
        if self._out is not None:
            append_result(self._out, line)
        shown = ", ".join(f"{name} {value}" for name, value in measures.items())
        print(f"{scenario}, {history:,} events: {shown}", flush=True)


def measure_kept(run: Path, load: Load, store: str, items: list[Any], report: Report) -> None:
    """Everything on a server that keeps the histories."""
    users = [f"u{number}" for number in range(load.users)]
    size, request = (load.users, load.history), mixed(users, items, seed=0)
    with serving(run, store, "--cache-mib", load.cache_mib) as (port, process):
        if report.store == "sqlite":
            for length, kib in asyncio.run(kept_kib(port)).items():
                report.append("memory", PAIR_USERS, length, {"kib_per_user": kib})
        report.add("cold", *size, None, asyncio.run(warm(port, users)))
        asyncio.run(as_fast_as_possible(port, request, connections=16, seconds=3))
        work = as_fast_as_possible(port, request, connections=16, seconds=load.seconds)
        report.add("mixed", *size, None, asyncio.run(work))
        work = at_a_rate(port, request, rate=100, seconds=load.seconds)
        report.add("mixed-100", *size, 100, asyncio.run(work))
        for length, outcome in asyncio.run(pairs(port, items)).items():
            report.add("pair", PAIR_USERS, length, None, outcome)
        work = swapped(port, process, request, load.seconds)
        report.add("swap", *size, 100, asyncio.run(work))


def measure_recomputed(run: Path, load: Load, store: str, items: list[Any], report: Report) -> None:
    """The same load on a server whose cache holds nothing."""
    request = mixed([f"u{number}" for number in range(load.users)], items, seed=5)
    with serving(run, store, "--cache-mib", 0, "--timeout", 60) as (port, _):
        work = as_fast_as_possible(port, request, connections=16, seconds=load.seconds)
        report.add("recompute", load.users, load.history, None, asyncio.run(work))


def measure_server(
    run: Path,
    *,
    load: Annotated[Load, Parameter(name="*")] = Load(),
    store: str | None = None,
    soak_minutes: Annotated[float, Parameter(name="--soak")] = 0,
    out: Path | None = None,
) -> None:
    """Throughput and latency of a server with kept histories, beside one that recomputes them.

    Args:
        run: folder of a trained run
        store: an empty store as the server takes it; an SQLite file of its own without it
        soak_minutes: mixed load with bad requests for so long; nothing else is measured
        out: JSONL file to which lines are appended; none without it
    """
    report = Report(run, out, store.partition(":")[0] if store else "sqlite")
    with tempfile.TemporaryDirectory() as folder:
        where = store or str(Path(folder) / "events.sqlite")
        items = fill_store(where, run, load.users, load.history)
        if soak_minutes:
            request = messy([f"u{number}" for number in range(load.users)], items)
            with serving(run, where, "--cache-mib", 64) as (port, _):
                outcome, memory = asyncio.run(soak(port, request, soak_minutes))
            report.add("soak", load.users, load.history, None, outcome, rss_mib=memory)
            return
        measure_kept(run, load, where, items, report)
        if not store:
            measure_recomputed(run, load, where, items, report)
