"""Time and memory of two layers with each attention: the paper's table of efficiency.

It is what ``speed encoder`` measures, length by length, without what there are lines of.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.reproduce import read
from benchmarks.results import commit, hardware
from benchmarks.speed import bench_encoder
from benchmarks.speed.bench_options import DTYPES, BenchOptions
from benchmarks.speed.run_bench import run_cases
from blossomrec.device import resolve_device

# The other kernels of Blossom attention on a GPU, which is measured by those it takes.
LEFT_OUT = {"triton"}


def measure_efficiency(out: Path, *, dry_run: bool = False) -> bool:
    """Append a line of each attention and length, where ``out`` has none of this machine and code.

    Args:
        dry_run: only say what would be done.

    Returns:
        Whether parity held.
    """
    device = resolve_device("auto")
    options, there = wanted(device), measured(out, device)
    all_cases = [case for case in bench_encoder.cases(options) if case.impl not in LEFT_OUT]
    to_do = [case for case in all_cases if case.key not in there]
    print(
        f"efficiency: {len(all_cases)} measurements, {len(to_do)} to do on {hardware(device)}; the "
        "time is unknown, seconds for each",
        flush=True,
    )
    if dry_run or not to_do:
        return True
    impls = tuple(dict.fromkeys(case.impl for case in to_do))
    return run_cases(bench_encoder, to_do, replace(options, impls=impls), out) is not None


def wanted(device: str) -> BenchOptions:
    """What ``speed encoder`` is asked for where nothing else is said."""
    dtype = DTYPES[bench_encoder.DTYPE[device]]
    return BenchOptions(device, dtype, bench_encoder.LENGTHS[device], bench_encoder.TOKENS[device])


def measured(out: Path, device: str | torch.device) -> set[tuple[Any, ...]]:
    """The keys of the cases that have a line of this machine and of this code."""
    here = {"bench": "encoder", "hardware": hardware(device), "commit": commit()}
    lines = [line for line in read(out) if here.items() <= line.items()]
    return {tuple(line.get(name) for name in bench_encoder.KEY) for line in lines}
