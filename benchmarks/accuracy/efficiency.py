"""Time and memory of two layers with each attention: the paper's table of efficiency.

It is what ``speed encoder`` measures, length by length, without what there are lines of.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.results import commit, hardware
from benchmarks.speed import bench_encoder
from benchmarks.speed.bench_options import DTYPES, BenchOptions
from benchmarks.speed.run_bench import run_bench
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
    wanted, there = cases(device), measured(out, device)
    to_do = {length: impls - there.get(length, set()) for length, impls in wanted.items()}
    count = sum(map(len, to_do.values()))
    print(
        f"efficiency: {sum(map(len, wanted.values()))} attentions and lengths, {count} to do on "
        f"{hardware(device)}; the time is unknown, seconds for each",
        flush=True,
    )
    held = True
    for length, impls in to_do.items() if not dry_run else ():
        if impls:
            held &= run_bench("encoder", lengths=[length], impls=sorted(impls), out=out)
    return held


def cases(device: str) -> dict[int, set[str]]:
    """Which attentions are to be measured at each length."""
    dtype = DTYPES[bench_encoder.DTYPE[device]]
    lengths, tokens = bench_encoder.LENGTHS[device], bench_encoder.TOKENS[device]
    options = BenchOptions(device, dtype, lengths, tokens)
    found: dict[int, set[str]] = {length: set() for length in options.lengths}
    for case in bench_encoder.cases(options):
        found[case.length] |= {case.impl} - LEFT_OUT
    return found


def measured(out: Path, device: str | torch.device) -> dict[int, set[str]]:
    """Which attentions have lines of this machine and of this code, by length."""
    here = {"bench": "encoder", "hardware": hardware(device), "commit": commit()}
    found: dict[int, set[str]] = {}
    for text in out.read_text().splitlines() if out.exists() else ():
        line = json.loads(text)
        if here.items() <= line.items():
            found.setdefault(line["length"], set()).add(line["impl"])
    return found
