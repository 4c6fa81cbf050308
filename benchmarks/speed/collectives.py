"""What the ranks of a training tell each other, by collective and size, without anything else.

    from benchmarks.speed.collectives import measure_collectives
    measure_collectives(2, out=Path("results/scale.jsonl"))

``python -m benchmarks scale`` measures it, too. A size is that of the whole: what an all_gather
ends with, what a reduce_scatter begins with, what each rank has of an all_to_all and an all_reduce.
The rate counts the bytes that must leave each rank; between GPUs that all reach each other it is
about the same for any number of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.ranks import answer, by_ranks
from benchmarks.speed.instruments.timing import synchronize
from blossomrec.ranks import Ranks

# Of float32.
MIB = (0.0625, 1.0, 16.0, 256.0)
WARM_UP, CALLS = 5, 20
ALL_GATHER, REDUCE_SCATTER = "all_gather", "reduce_scatter"
ALL_REDUCE, ALL_TO_ALL = "all_reduce", "all_to_all"
COLLECTIVES = (ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, ALL_TO_ALL)


def leaving(collective: str, gpus: int) -> float:
    """The share of a collective's bytes that must leave each of N ranks.

    >>> leaving("all_gather", 4), leaving("all_reduce", 4)
    (0.75, 1.5)
    """
    return (gpus - 1) / gpus * (2 if collective == ALL_REDUCE else 1)


def measure_collectives(
    gpus: int,
    device: str = "cuda",
    *,
    mib: tuple[float, ...] | None = None,
    out: Path | None = None,
) -> None:
    """Time of each collective by its size.

    Args:
        gpus: how many ranks take part, two at least
        device: cuda, or cpu where ranks are processes
        mib: sizes; 64 KiB to 256 MiB without it
        out: JSONL file that gets a line for each collective and size

    Raises:
        BlossomRecError: a rank failed; the message tells what it printed last.
    """
    asked = {"mib": list(mib or MIB)}
    for found in by_ranks("benchmarks.speed.collectives", asked, gpus, device):
        line = {"bench": "collectives", "gpus": gpus, **found}
        print(json.dumps(line), flush=True)
        if out is not None:
            append_result(out, {**line, **provenance(device)})


def time_collectives(asked: dict[str, Any], device: str, ranks: Ranks) -> list[dict[str, Any]]:
    """Time of all, that of the slowest rank; all ranks call this."""
    return [
        {"mib": mib, "collective": name, **_timed(name, mib, device, ranks)}
        for mib in asked["mib"]
        for name in COLLECTIVES
    ]


def _timed(name: str, mib: float, device: str, ranks: Ranks) -> dict[str, float]:
    call, size = _call(name, mib, device, ranks)
    for _ in range(WARM_UP):
        call()
    synchronize(device)
    ranks.agree(0)
    began = perf_counter()
    for _ in range(CALLS):
        call()
    synchronize(device)
    (nanoseconds,) = ranks.agree(int((perf_counter() - began) * 1e9))
    seconds = nanoseconds / 1e9 / CALLS
    rate = leaving(name, ranks.size) * size / seconds
    return {"microseconds": round(1e6 * seconds, 1), "gb_per_second": round(rate / 1e9, 3)}


def _call(name: str, mib: float, device: str, ranks: Ranks) -> tuple[Callable[[], Tensor], int]:
    """A collective as a training calls it, and its bytes, as many of each rank."""
    each = max(1, round(mib * 2**20 / 4 / ranks.size))
    whole = torch.zeros(each * ranks.size, device=device)
    part, counts = whole[:each], [each] * ranks.size
    calls: dict[str, Callable[[], Tensor]] = {
        ALL_GATHER: lambda: ranks.gather(part),
        REDUCE_SCATTER: lambda: ranks.sum_to_owners(whole),
        ALL_REDUCE: lambda: ranks.sum_(whole),
        ALL_TO_ALL: lambda: ranks.exchange(whole, counts, counts),
    }
    return calls[name], whole.nbytes


if __name__ == "__main__":
    answer(time_collectives)
