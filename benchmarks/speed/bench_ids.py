"""Time and memory of logs with very many ids: preparing them, opening them, looking ids up.

    python -m benchmarks ids --ids 2000000 5000000 --out results/data.jsonl

Every user has an event. Each measurement runs in a process of its own. Memory is what it holds
itself: pages of files that are mapped are of the system, which takes them back.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import alone
from blossomrec.errors import whole_number

SIZES = (2_000_000, 5_000_000)
KINDS = ("integers", "text")
ITEMS, EVENTS_A_FILE, LOOKUPS = 100_000, 2_000_000, 10_000
# Coprime to every size that is no multiple of it, so that users come in no order.
_STRIDE = 1_000_003


def user_ids(numbers: np.ndarray, kind: str) -> Any:
    """Ids of users by their numbers: integers that lie apart, or a letter and twelve digits."""
    import polars as pl

    spread = pl.Series(numbers * 7_919 + 1_000_000_007)
    if kind == "integers":
        return spread
    return pl.select(pl.format("u{}", spread.cast(pl.String).str.zfill(12))).to_series()


def write_users(folder: Path, users: int, kind: str) -> None:
    """An event of every user, in no order, as Parquet files."""
    import polars as pl

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, users, EVENTS_A_FILE)):
        rows = np.arange(start, min(start + EVENTS_A_FILE, users)) * _STRIDE % users
        frame = pl.DataFrame(
            {
                "user_id": user_ids(rows, kind),
                "item_id": rng.integers(0, ITEMS, len(rows)),
                "timestamp": 1_600_000_000 + rows,
            }
        )
        frame.write_parquet(folder / f"{number:05}.parquet", row_group_size=500_000)


class AnonymousMemory:
    """The most anonymous memory that the process holds while this is entered, in bytes."""

    def __init__(self, interval: float = 0.01):
        self._interval, self._over = interval, threading.Event()
        self.before = self.peak = anonymous()

    def __enter__(self) -> AnonymousMemory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            self.peak = max(self.peak, anonymous())


def anonymous() -> int:
    """Bytes that this process holds in memory, without pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status tells no anonymous memory")


def prepare(source: Path, log: Path) -> dict[str, Any]:
    """Prepare the events."""
    from blossomrec.data.log import EventLog

    start = time.perf_counter()
    with AnonymousMemory() as memory:
        EventLog.prepare(source, log)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "peak_mib": round(memory.peak / 2**20, 1)}


def look_up(log: Path, users: int, kind: str) -> dict[str, Any]:
    """Open the log and look up some of its users, and as many strangers."""
    from blossomrec.data.log import EventLog

    rng = np.random.default_rng(1)
    asked = user_ids(rng.integers(0, 2 * users, LOOKUPS), kind).to_list()
    with AnonymousMemory() as memory:
        start = time.perf_counter()
        opened = EventLog.open(log)
        first = time.perf_counter()
        opened.user_vocabulary.rows(asked[:1])
        checked = time.perf_counter()
        found = opened.user_vocabulary.rows(asked)
        end = time.perf_counter()
    known = int((found >= 0).sum())
    if not 0.4 < known / LOOKUPS < 0.6:
        raise AssertionError(f"{known:,} of {LOOKUPS:,} ids were found: about half are known")
    return {
        "open_seconds": round(first - start, 2),
        "check_seconds": round(checked - first, 2),
        "lookup_us": round((end - checked) / LOOKUPS * 1e6, 1),
        "open_mib": round((memory.peak - memory.before) / 2**20, 1),
    }


def measure_ids(
    *,
    ids: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = SIZES,
    kinds: Annotated[
        tuple[Literal["integers", "text"], ...], Parameter(consume_multiple=True)
    ] = KINDS,
    out: Path = Path("results/data.jsonl"),
) -> None:
    """Time and memory of preparing and of opening logs with very many users.

    Args:
        ids: numbers of users, each with an event
        kinds: of their ids
        out: JSONL file to which a line for each measurement is appended
    """
    for size in ids:
        whole_number("ids", size, low=1_000)
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                source, log = Path(folder) / "events", Path(folder) / "log"
                alone(write_users, source, size, kind)
                line = {"bench": "ids", "kind": kind, "ids": size} | alone(prepare, source, log)
                line |= alone(look_up, log, size, kind) | provenance()
            append_result(out, line)
            told = f"prepared in {line['seconds']} s, {line['peak_mib']} MiB"
            opened = f"opened in {line['open_seconds']} s, {line['open_mib']} MiB"
            print(f"{size:,} {kind}: {told}; {opened}, {line['lookup_us']} us an id", flush=True)
