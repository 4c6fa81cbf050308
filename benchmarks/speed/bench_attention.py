"""The operation alone (compress, select, attend, fuse), its short-term path, and dense attention.

Paths are fused by gates or, in rows such as ``cuda-union``, by a union; lines say so as ``fusion``.
The layout of models by default has a union alone. On a GPU the peers are dense attention through
cuDNN and through FlashAttention, with the same heads and with the fastest layout of the published
hidden size; dense attention with all its scores in memory, where that fits; and FlexAttention with
the mask of the short-term path, beside the kernels on that path alone. With a log, batches with the
lengths of its histories stand beside batches of equal ones, as long as its mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.speed import operations
from benchmarks.speed.bench_options import (
    DEFAULT,
    FASTEST_DENSE,
    PUBLISHED,
    UNION,
    WIDE,
    BenchOptions,
    Layout,
)
from benchmarks.speed.flex import TILE
from benchmarks.speed.history_lengths import equal_lengths, real_lengths
from benchmarks.speed.instruments.floor import floor_mib, floor_milliseconds
from benchmarks.speed.instruments.memory import free_bytes, peak_mib
from benchmarks.speed.instruments.parity import TOLERANCE, Check, largest_error
from benchmarks.speed.instruments.timing import graph_milliseconds, milliseconds
from benchmarks.speed.operations import Operation
from benchmarks.speed.speed_lines import Line, result_line

LENGTHS = {"cpu": (256, 1_024, 4_096, 16_384), "cuda": (256, 1_024, 4_096, 16_384, 65_536)}
TOKENS = {"cpu": 16_384, "cuda": 131_072}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
# Length 0 stands for histories of different lengths.
RAGGED = 0
LAYOUTS = (PUBLISHED, DEFAULT, WIDE)
CUDNN_STEP = 64
# Copies of the scores that forward and backward hold at a time.
NAIVE_COPIES = 5
# Histories of the check: where any lengths are taken, and where they must be alike.
CHECKED = {"any": (300, 1, 16, 451, 256), "alike": (256, 256)}
# Share of choices that may differ from the reference: of scores alike but for rounding.
CHOICES = 2e-3


@dataclass(frozen=True)
class Case:
    """What is measured: an implementation or peer, its heads, the length of the histories."""

    impl: str
    compress: str
    layout: Layout
    length: int


def cases(options: BenchOptions) -> list[Case]:
    """All that is to be measured, by rising length."""
    lengths = list(options.lengths)
    if options.log is not None:
        drawn = real_lengths(options.log, options.tokens)
        lengths = [RAGGED, round(sum(drawn) / len(drawn)), *lengths]
    planned = []
    for length in dict.fromkeys(lengths):
        for layout in LAYOUTS:
            rows = [*_blossom(layout, options), *_dense(length, options), *_others(length)]
            if layout == PUBLISHED:
                rows += _short_paths(length, options)
            planned += [Case(*row, layout, length) for row in rows]
        planned += [Case(*row, FASTEST_DENSE, length) for row in _dense(length, options)]
    return [case for case in planned if options.wants(case.impl)]


def checks(options: BenchOptions) -> Iterator[Check]:
    """Outputs and gradients of every implementation and peer, and the choices of blocks."""
    seen = set()
    for case in cases(options):
        kind = (case.impl, case.compress, case.layout, case.length == RAGGED)
        if case.impl == "floor" or kind in seen:
            continue
        seen.add(kind)
        yield from _check(case, options)


def measure(case: Case, options: BenchOptions) -> Line | None:
    """One line of results; None where the scores would not fit."""
    lengths = _lengths(case, options)
    form: dict[str, Any] = {
        "length": case.length,
        "tokens": sum(lengths),
        "compress": case.compress,
        "dtype": options.dtype,
        "device": options.device,
    }
    if case.compress != "none":
        form["fusion"] = operations.fusion_of(case.impl)
    if case.length == RAGGED and options.log is not None:
        form["ragged"] = {
            "log": options.log.name,
            "histories": len(lengths),
            "mean": round(sum(lengths) / len(lengths), 1),
            "longest": max(lengths),
        }
    if case.impl == "floor":
        form |= floor_milliseconds(lengths, case.layout, options.dtype, options.device)
        memory = floor_mib(lengths, case.layout, options.dtype.itemsize)
        return result_line("attention", "floor", case.layout, peak_mib=memory, **form)
    if case.impl == "naive" and not _scores_fit(case, lengths, options):
        return None
    # Without a kernel for packed histories, dense attention waits for their lengths.
    graph = options.device == "cuda" and not (case.impl == "dense" and case.length == RAGGED)
    timed = _time(operation(case, lengths, options.device, options.dtype), options.device, graph)
    return result_line("attention", case.impl, case.layout, **form, **timed)


def operation(case: Case, lengths: tuple[int, ...], device: str, dtype: torch.dtype) -> Operation:
    """What a case times."""
    form = (case.layout, lengths, device, dtype)
    if case.impl == "naive":
        return operations.naive(*form)
    if case.impl == "flex-short":
        return operations.flex_short_path(*form)
    if case.impl.endswith("-short"):
        return operations.short_path(case.impl.removesuffix("-short"), *form)
    if case.compress != "none":
        return operations.blossom(case.impl, case.compress, *form)
    if case.length == RAGGED:
        return operations.ragged_dense(*form)
    return operations.dense(case.impl, *form)


def _blossom(layout: Layout, options: BenchOptions) -> list[tuple[str, str]]:
    fusions = (UNION,) if layout == DEFAULT else ("", UNION)
    forms = [impl + fusion for impl in options.blossom for fusion in fusions]
    return [(form, way) for form in forms for way in ("mean", "mlp")]


def _dense(length: int, options: BenchOptions) -> list[tuple[str, str]]:
    """Names of the fused kernels for dense attention."""
    if options.device == "cpu" or not options.half:
        return [("dense", "none")]
    # Not every version of cuDNN takes every length.
    uneven = length == RAGGED or length % CUDNN_STEP
    names = ("flash",) if uneven else tuple(operations.BACKENDS)
    return [(name, "none") for name in names]


def _others(length: int) -> list[tuple[str, str]]:
    names = ("floor",) if length == RAGGED else ("naive", "floor")
    return [(name, "none") for name in names]


def _short_paths(length: int, options: BenchOptions) -> list[tuple[str, str]]:
    """Names of ways to the short-term path alone; FlexAttention has no backward on a CPU."""
    if options.device == "cpu" or length == RAGGED or length % TILE:
        return []
    return [*((f"{impl}-short", "none") for impl in options.blossom), ("flex-short", "none")]


def _lengths(case: Case, options: BenchOptions) -> tuple[int, ...]:
    if case.length == RAGGED and options.log is not None:
        return real_lengths(options.log, options.tokens)
    return equal_lengths(case.length, options.tokens)


def _scores_fit(case: Case, lengths: tuple[int, ...], options: BenchOptions) -> bool:
    scores = len(lengths) * case.layout.heads * case.length**2 * options.dtype.itemsize
    return NAIVE_COPIES * scores < free_bytes(options.device)


def _time(timed: Operation, device: str, graph: bool) -> dict[str, Any]:
    direction = torch.ones_like(timed.leaves[0])

    def both() -> None:
        torch.autograd.grad(timed.forward(), timed.leaves, direction)

    both()  # what is compiled, planned or loaded once is not what a call takes
    memory = peak_mib(both, device)
    # A call of a few hundred microseconds would measure Python otherwise.
    clock = graph_milliseconds if graph else partial(milliseconds, device=device)
    forward, forward_backward = (clock(run) for run in (timed.forward, both))
    return {
        "peak_mib": memory,
        "forward_ms": forward,
        "forward_backward_ms": forward_backward,
        "graph": graph,
    }


def _check(case: Case, options: BenchOptions) -> Iterator[Check]:
    any_lengths = case.compress != "none" or case.length == RAGGED
    lengths = CHECKED["any" if any_lengths else "alike"]
    checked = operation(case, lengths, options.device, options.dtype)
    heads = "/".join(map(str, case.layout))
    name = " ".join(part for part in (case.impl, case.compress, heads) if part != "none")
    if checked.selection is not None:
        chosen, best = checked.selection(case.impl), checked.selection("reference")
        differing = (chosen != best).double().mean()
        yield Check(f"choices of {name}", float(differing), CHOICES)
    exact = [leaf.detach().double().requires_grad_() for leaf in checked.leaves]
    error = largest_error(
        _output_and_gradients(checked.function, checked.leaves),
        _output_and_gradients(checked.definition, exact),
    )
    # Fused dense kernels round the attention itself before the second product.
    slack = 1 if case.compress != "none" else 4
    yield Check(name, error, slack * TOLERANCE[options.dtype])


def _output_and_gradients(function, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype)
    gradients = torch.autograd.grad(out, leaves, weights.expand_as(out))
    return [out, *gradients]
