"""The verb ``speed``: parity first, then one line for each measurement."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from benchmarks.speed import bench_attention, bench_encoder, bench_incremental, bench_training
from benchmarks.speed.bench_options import DTYPES, BenchOptions
from benchmarks.speed.instruments.memory import alone
from benchmarks.speed.instruments.parity import Check
from benchmarks.speed.length_plots import draw, require_matplotlib
from benchmarks.speed.speed_lines import Line, publish
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError

# Each has LENGTHS, TOKENS and DTYPE by device, and cases, checks and measure.
BENCHES: dict[str, ModuleType] = {
    "attention": bench_attention,
    "encoder": bench_encoder,
    "training": bench_training,
    "incremental": bench_incremental,
}
# Options that one bench alone takes.
OWNERS = {
    "lengths-of": "attention",
    "log": "training",
    "steps": "training",
    "users": "incremental",
}


def run_bench(
    what: Literal["attention", "encoder", "training", "incremental"],
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    lengths: list[int] | None = None,
    tokens: int | None = None,
    impls: list[str] | None = None,
    lengths_of: Path | None = None,
    log: Path | None = None,
    steps: int | None = None,
    users: list[int] | None = None,
    out: Path | None = None,
    plot: Path | None = None,
) -> bool:
    """Time and memory over the length of histories, beside peers; exit code 1 on a red parity.

    Args:
        what: the operation alone, two layers of it, an epoch of training, or one more event
        device: where to measure
        dtype: bfloat16 on a GPU and float32 elsewhere without it; incremental float32
        lengths: events of a history, such as 1024 4096; for training the most the model sees
        tokens: most events of all histories together
        impls: implementations and peers to measure, such as triton flash; all without it
        lengths_of: attention: prepared log from whose lengths ragged batches are also drawn
        log: training: prepared log whose batches are trained on
        steps: training: batches to time; an epoch without it
        users: incremental: users who get an event at the same time, such as 1 256
        out: JSONL file to which a line for each measurement is appended
        plot: SVG file that gets time and memory over length

    Returns:
        Whether parity held; where it did not, nothing was timed.

    Raises:
        ConfigError: an option is wrong.
        MissingExtraError: ``plot`` is wanted and matplotlib is not installed.
    """
    _refuse_others(what, {"lengths-of": lengths_of, "log": log, "steps": steps, "users": users})
    if plot is not None:
        require_matplotlib()
    bench, where = BENCHES[what], resolve_device(device)
    options = BenchOptions(
        device=where,
        dtype=DTYPES[dtype or bench.DTYPE[where]],
        lengths=tuple(lengths or bench.LENGTHS[where]),
        tokens=bench.TOKENS[where] if tokens is None else tokens,
        impls=tuple(impls or ()),
        log=lengths_of or log,
        steps=steps,
        users=tuple(users or (1,)),
    )
    lines = run_cases(bench, planned(bench, options), options, out)
    if lines is not None and plot is not None:
        draw(lines, what, plot)
    return lines is not None


def run_cases(
    bench: ModuleType, cases: Sequence[Any], options: BenchOptions, out: Path | None
) -> list[Line] | None:
    """The line of each case, appended to ``out``; None where parity is red: nothing is timed."""
    red = [check for check in bench.checks(options) if check.red]
    if red:
        _complain(red)
        return None
    lines = []
    for line in _measured(bench, cases, options):
        publish(line, out)
        lines.append(line)
    return lines


def _refuse_others(name: str, given: dict[str, Any]) -> None:
    """Raise ConfigError where an option is given that belongs to another bench."""
    for option, value in given.items():
        if value is not None and name != OWNERS[option]:
            raise ConfigError(f"--{option} is for {OWNERS[option]}, not for {name}")


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
