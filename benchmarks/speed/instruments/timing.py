"""The one clock of all benches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch

WARM_UP = {"cpu": 1, "cuda": 5}
# Timed calls: as many as fit in so many seconds, within bounds.
SECONDS, LEAST, MOST = 0.5, 5, 300
# Of calls in a graph, which is replayed ten times.
GRAPH_MILLISECONDS = 50


def milliseconds(run: Callable[[], Any], device: str, *, waiting: bool = False) -> float:
    """Median time of a call, after some to warm up; at least five calls are timed.

    On a GPU the device's own clock is read before and after each call. Calls follow each other
    without a wait, so that the host's work hides behind the device's wherever it is shorter.

    Args:
        waiting: let the device finish before each call, as someone does who waits for the answer;
            the host's work then counts in full.
    """
    for _ in range(WARM_UP[device]):
        run()
    repeats = _repeats(run, device)
    times = _device_times(run, repeats, waiting) if device == "cuda" else _host_times(run, repeats)
    return 1e3 * statistics.median(times)


def seconds(run: Callable[[], Any], device: str) -> float:
    """Time of one call on the wall clock, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def graph_milliseconds(run: Callable[[], Any]) -> float:
    """Median time of a call in a CUDA graph of many: the device's work without the host's.

    The call must not wait for the device.
    """
    from triton.testing import do_bench_cudagraph

    return cast(float, do_bench_cudagraph(run, rep=GRAPH_MILLISECONDS, return_mode="median"))


def synchronize(device: str) -> None:
    """Wait until a GPU has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def _repeats(run: Callable[[], Any], device: str) -> int:
    return max(LEAST, min(MOST, int(SECONDS / max(seconds(run, device), 1e-9))))


def _host_times(run: Callable[[], Any], repeats: int) -> list[float]:
    return [seconds(run, "cpu") for _ in range(repeats)]


def _device_times(run: Callable[[], Any], repeats: int, waiting: bool) -> list[float]:
    marks = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if waiting:
            torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in marks]
