"""Throughput and latency of a server with kept histories, beside one that recomputes them.

    blossomrec train LOG RUN --model.max-len 2400
    python benchmarks/serving.py RUN --out results/serving.jsonl
    python benchmarks/serving.py RUN --out results/serving.jsonl --store redis://127.0.0.1:6379/9

The server runs in a process of its own, the load in this one, on the same machine. Requests are
half appends of one event and half questions for ten items, of a random user each:

- ``memory``: what a kept history takes, by its length;
- ``cold``: the first question for every user;
- ``mixed``: as many as 16 connections take; ``mixed-100``: 100 a second at random moments;
- ``swap``: these 100 a second while a new model is read, prepared and used;
- ``recompute``: the same load on a server whose cache holds nothing, so that every question
  encodes the whole history;
- ``pair``: one append and one question after it, one at a time, by length of the history;
- ``soak`` (with ``--soak MINUTES``): mixed load with bad requests and users that come and go, under
  a small cache; ``rss_mib`` is the memory of the server, minute by minute.

With ``--store`` the events are in another place than an SQLite file. It must be empty, and is only
emptied by whoever gave it; ``memory`` and ``recompute`` are not measured again.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from load import Connection, Outcome, Request, as_fast_as_possible, at_a_rate, mixed

from blossomrec.data.vocabulary import Vocabulary
from blossomrec.evaluation.results import append_result, provenance
from blossomrec.serving.bulk import import_events
from blossomrec.serving.stores import store_opener
from blossomrec.training.run import read_run_config

LENGTHS = (200, 2_000, 20_000)
PAIRS = 300
# Users with each of these lengths, so that no history is that of one user alone.
PAIR_USERS = 4
LONGEST = 32_768


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


def question(user: str) -> Request:
    """One question for a user."""

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
            outcome.errors += not await question(waiting.pop())(connection)
            outcome.seconds.append(time.perf_counter() - begun)
        connection.close()

    await asyncio.gather(*(work() for _ in range(8)))
    outcome.duration = time.perf_counter() - start
    return outcome


async def pairs(port: int, items: list[Any]) -> dict[int, Outcome]:
    """Time of an append and a question after it, in turns over the lengths of the history."""
    outcomes = {length: Outcome() for length in LENGTHS}
    draw, connection = random.Random(2), await Connection.open(port)
    for turn in range(PAIRS + 20):
        for length, outcome in outcomes.items():
            user = f"l{length}-{turn % PAIR_USERS}"
            event = {"events": [{"item": draw.choice(items)}]}
            start = time.perf_counter()
            status, _ = await connection.ask("POST", f"/v1/users/{user}/events", event)
            good = status == 200 and await question(user)(connection)
            # The first turns encode the histories.
            if turn >= 20:
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
        ("POST", "/v1/users/x/events", {"events": [{"item": "?" * 200}] * 1_000}),
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
        self._out, self._store = out, store
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
            "store": self._store,
            "users": users,
            "history": history,
            **measures,
            **provenance(),
        }
        if self._out is not None:
            append_result(self._out, line)
        shown = ", ".join(f"{name} {value}" for name, value in measures.items())
        print(f"{scenario}, {history:,} events: {shown}", flush=True)


def measure_kept(given: Any, store: str, items: list[Any], report: Report) -> None:
    """Everything on a server that keeps the histories."""
    users = [f"u{number}" for number in range(given.users)]
    size, request = (given.users, given.history), mixed(users, items, seed=0)
    with serving(given.run, store, "--cache-mib", given.cache_mib) as (port, process):
        sizes = {} if given.store else asyncio.run(kept_kib(port))
        for length, size_kib in sizes.items():
            report.append("memory", PAIR_USERS, length, {"kib_per_user": size_kib})
        report.add("cold", *size, None, asyncio.run(warm(port, users)))
        asyncio.run(as_fast_as_possible(port, request, connections=16, seconds=3))
        load = as_fast_as_possible(port, request, connections=16, seconds=given.seconds)
        report.add("mixed", *size, None, asyncio.run(load))
        load = at_a_rate(port, request, rate=100, seconds=given.seconds)
        report.add("mixed-100", *size, 100, asyncio.run(load))
        for length, outcome in asyncio.run(pairs(port, items)).items():
            report.add("pair", PAIR_USERS, length, None, outcome)
        load = swapped(port, process, request, given.seconds)
        report.add("swap", *size, 100, asyncio.run(load))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--users", type=int, default=1_000)
    arguments.add_argument("--history", type=int, default=2_000)
    arguments.add_argument("--seconds", type=float, default=30)
    arguments.add_argument("--cache-mib", type=int, default=4_096)
    arguments.add_argument(
        "--soak", type=float, default=0, help="minutes; nothing else is measured"
    )
    arguments.add_argument("--store", help="as the server takes it; a file of its own without")
    arguments.add_argument("--out", type=Path, help="JSON lines are appended here; none without")
    given = arguments.parse_args()
    kind = given.store.partition(":")[0] if given.store else "sqlite"
    report = Report(given.run, given.out, kind)
    users = [f"u{number}" for number in range(given.users)]
    with tempfile.TemporaryDirectory() as folder:
        store = given.store or str(Path(folder) / "events.sqlite")
        items = fill_store(store, given.run, given.users, given.history)
        if given.soak:
            with serving(given.run, store, "--cache-mib", 64) as (port, _):
                outcome, memory = asyncio.run(soak(port, messy(users, items), given.soak))
            report.add("soak", given.users, given.history, None, outcome, rss_mib=memory)
            return 0
        measure_kept(given, store, items, report)
        if given.store:
            return 0
        with serving(given.run, store, "--cache-mib", 0, "--timeout", 60) as (port, _):
            load = as_fast_as_possible(
                port, mixed(users, items, seed=5), connections=16, seconds=given.seconds
            )
            report.add("recompute", given.users, given.history, None, asyncio.run(load))
    return 0


if __name__ == "__main__":
    sys.exit(main())
