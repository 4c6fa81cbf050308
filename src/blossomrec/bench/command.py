"""The verb ``bench``: parity first, then one line for each measurement."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from blossomrec.bench import attention, encoder, incremental, training
from blossomrec.bench.lines import Line, publish
from blossomrec.bench.memory import alone
from blossomrec.bench.options import DTYPES, BenchOptions
from blossomrec.bench.parity import Check
from blossomrec.bench.plots import draw, require_matplotlib
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError

# Each has LENGTHS, TOKENS and DTYPE by device, and cases, checks and measure.
BENCHES: dict[str, ModuleType] = {
    "attention": attention,
    "encoder": encoder,
    "training": training,
    "incremental": incremental,
}
# Options that one bench alone takes.
OWNERS = {
    "lengths-of": "attention",
    "log": "training",
    "steps": "training",
    "users": "incremental",
}


def run_bench(
    name: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    lengths: Sequence[int] | None = None,
    tokens: int | None = None,
    impls: Sequence[str] = (),
    lengths_of: Path | None = None,
    log: Path | None = None,
    steps: int | None = None,
    users: Sequence[int] | None = None,
    out: Path | None = None,
    plot: Path | None = None,
) -> bool:
    """Measure, print a line each, append it to ``out`` and draw ``plot``.

    Returns:
        Whether parity held; where it did not, nothing was timed.

    Raises:
        ConfigError: an option is wrong.
        MissingExtraError: ``plot`` is wanted and matplotlib is not installed.
    """
    _refuse_others(name, {"lengths-of": lengths_of, "log": log, "steps": steps, "users": users})
    if plot is not None:
        require_matplotlib()
    bench, device = BENCHES[name], resolve_device(device)
    options = BenchOptions(
        device=device,
        dtype=DTYPES[dtype or bench.DTYPE[device]],
        lengths=tuple(lengths or bench.LENGTHS[device]),
        tokens=bench.TOKENS[device] if tokens is None else tokens,
        impls=tuple(impls),
        log=lengths_of or log,
        steps=steps,
        users=tuple(users or (1,)),
    )
    cases = planned(bench, options)
    red = [check for check in bench.checks(options) if check.red]
    if red:
        _complain(red)
        return False
    lines = []
    for line in _measured(bench, cases, options):
        publish(line, out)
        lines.append(line)
    if plot is not None:
        draw(lines, name, plot)
    return True


def _refuse_others(name: str, given: dict[str, Any]) -> None:
    """Raise ConfigError where an option is given that belongs to another bench."""
    for option, value in given.items():
        if value is not None and name != OWNERS[option]:
            raise ConfigError(f"--{option} is for bench {OWNERS[option]}, not for {name}")


def planned(bench: ModuleType, options: BenchOptions) -> list[Any]:
    """What is to be measured; ConfigError where ``impls`` names something else."""
    cases = bench.cases(options)
    found = {case.impl for case in cases}
    for impl in options.impls:
        if impl not in found:
            known = {case.impl for case in bench.cases(dataclasses.replace(options, impls=()))}
            raise ConfigError(f"impls has {impl!r}: choose from {', '.join(sorted(known))}")
    return cases


def _measured(bench: ModuleType, cases: Sequence[Any], options: BenchOptions) -> Iterator[Line]:
    for case in cases:
        try:
            if options.device == "cuda":
                line = bench.measure(case, options)
            else:
                line = alone(bench.measure, case, options)
        except torch.OutOfMemoryError:
            line = None
        if line is None:
            print(f"{case.length:>7,} {case.impl}: does not fit in memory", flush=True)
        else:
            yield line
        if options.device == "cuda":
            torch.cuda.empty_cache()


def _complain(red: Sequence[Check]) -> None:
    for name, error, tolerance in red:
        print(
            f"parity of {name} is broken: error {error:.1e}, at most {tolerance:.0e} is right",
            file=sys.stderr,
        )
    print("nothing is timed", file=sys.stderr)
