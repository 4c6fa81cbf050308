"""Time of an answer with rules beside one without, of the engine of a server and of the library.

    python -m benchmarks rules --out results/serving.jsonl

A model of random weights and a simulated catalogue with a table of items. Requests go one at a
time, for one user after another, whose history is kept: what is measured is the ranking. Each user
is asked for with one kind of rules after the other, so that all meet the same load of the machine.
Nothing is printed unless filtered answers are the plain list without what the filter leaves out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.speed.bulk_rate import BulkSize, random_run
from blossomrec.config import ServingConfig, option
from blossomrec.errors import ConfigError
from blossomrec.recommender import BlossomRec
from blossomrec.rules import Rules
from blossomrec.serving.engine.service import Service
from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.bulk import import_events

# The prices of the simulated table are 1, 2, ... 100, its categories as many.
HALF = "price <= 50"
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "filter that keeps half": {"filter": HALF},
    "filter that is new each time": {},
    "max_per": {"max_per": {"category": 2}},
    "filter and max_per": {"filter": HALF, "max_per": {"category": 2}},
    "boost": {"boost": [[HALF, 0.5]]},
    "diversity": {"diversity": 0.3},
}
NEW = "filter that is new each time"


@dataclass(frozen=True)
class RuleSize:
    """How much is ranked, and how often."""

    items: int = option(100_000, "items of the catalogue", low=200)
    users: int = option(50, "users with a history", low=2)
    requests: int = option(200, "requests with each kind of rules", low=1)
    k: int = option(10, "items of an answer", low=1)


def given(name: str, number: int) -> dict[str, Any]:
    """The rules of a request, of which the server has seen the new ones never before."""
    return {"filter": f"price <= {50 + number / 1e6}"} if name == NEW else RULES[name]


def measure(answer: Callable[[int, dict[str, Any]], Any], requests: int) -> dict[str, list[float]]:
    """Seconds of each answer, by the name of the rules; ``answer`` takes a number and the rules."""
    seconds: dict[str, list[float]] = {name: [] for name in RULES}
    for number in range(requests):
        for name in RULES:
            rules, start = given(name, number), time.perf_counter()
            answer(number, rules)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def of_engine(run: Path, log: Any, size: RuleSize) -> dict[str, list[float]]:
    """Answers of the service behind a server, without HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        open_store = store_opener(str(Path(folder) / "events.sqlite"))[0]
        import_events(log.folder, open_store())
        service = Service(run, open_store, ServingConfig(), device="cpu", threads=1)
        users = [str(each) for each in log.user_vocabulary.ids(np.arange(size.users))]
        with asyncio.Runner() as runner:

            def answer(number: int, rules: dict[str, Any], k: int = size.k) -> list[Any]:
                user = users[number % len(users)]
                asked = service.recommend(user=user, k=k, rules=rules)
                return [item for item, _ in runner.run(asked)[1]]

            try:
                allowed = set(answer(0, {"filter": HALF}, size.items))
                plain = [item for item in answer(0, {}, size.items) if item in allowed]
                if answer(0, {"filter": HALF}) != plain[: size.k] or len(plain) < size.k:
                    raise ConfigError("filtered answers are not the plain list without the others")
                for number, name in itertools.product(range(len(users)), RULES):
                    answer(number, RULES[name])
                return measure(answer, size.requests)
            finally:
                service.close()


def of_library(recommender: BlossomRec, size: RuleSize) -> dict[str, list[float]]:
    """Answers of ``recommend``, which encodes the history and reads the rules anew each time."""
    assert recommender.log is not None
    users = recommender.log.user_vocabulary.ids(np.arange(size.users)).to_list()

    def answer(number: int, rules: dict[str, Any]) -> Any:
        user = users[number % len(users)]
        return recommender.recommend([user], size.k, rules=Rules(**rules) if rules else None)

    return measure(answer, size.requests)


def measure_rules(
    *,
    size: Annotated[RuleSize, Parameter(name="*")] = RuleSize(),
    out: Path | None = None,
) -> None:
    """Time of an answer with rules beside one without, of the engine and of the library.

    Args:
        out: JSONL file to which a line for each kind of rules is appended; none without it
    """
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        random_run(BulkSize(users=size.users, items=size.items), Path(folder))
        recommender = BlossomRec.from_pretrained(Path(folder) / "run", device="cpu")
        measured = {
            "engine": of_engine(Path(folder) / "run", recommender.log, size),
            "library": of_library(recommender, size),
        }
    for where, seconds in measured.items():
        for name, times in seconds.items():
            p50, p95 = np.percentile(times, (50, 95)) * 1e3
            line = {
                "scenario": "rules",
                "where": where,
                "rules": name,
                "items": size.items,
                "users": size.users,
                "k": size.k,
                "requests": len(times),
                "load": round(load, 1),
                "p50_ms": round(float(p50), 3),
                "p95_ms": round(float(p95), 3),
                **provenance(),
            }
            if out is not None:
                append_result(out, line)
            print(f"{where}, {name}: {line['p50_ms']} ms, p95 {line['p95_ms']} ms", flush=True)
