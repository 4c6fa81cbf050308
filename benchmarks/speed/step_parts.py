"""Where the time of a training step goes: attention, loss, optimizer, and what is none of them.

Steps over random histories are launched operation by operation under PyTorch's profiler. The time
of a kernel counts for the part whose operation launched it; backward, for the part whose operation
its gradient is of. Beside it stands the time of the same step as training takes it, on a GPU a CUDA
graph. On a processor the times are those of operations.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import alone
from benchmarks.speed.instruments.timing import seconds
from benchmarks.speed.sampled_step import FORMS, drawn, training_parts, training_step
from blossomrec.config import TrainingConfig
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.training.objective import Step
from blossomrec.training.setup import Parts
from blossomrec.training.update import Update

# Items, events of a history, and events of a batch: as of ml-1m and Gowalla, and a large catalogue.
CASES: dict[str, tuple[dict[str, int], str]] = {
    "3,416 items": ({"items": 3_416, "length": 200, "events": 8_192}, "exact"),
    "40,981 items": ({"items": 40_981, "length": 50, "events": 8_192}, "exact"),
    "1,000,000 items": (
        {"items": 1_000_000, "length": 1_000, "events": 131_072},
        "sampled, lazy_adamw",
    ),
}
INPUTS, ATTENTION, FEED_FORWARD = "inputs", "attention", "feed-forward and norms"
LOSS, OPTIMIZER, OTHER = "loss", "optimizer", "other"
PARTS = (ATTENTION, LOSS, OPTIMIZER, FEED_FORWARD, INPUTS, OTHER)
MARK = "part: "
# What PyTorch calls the operation that computes the gradients of another one.
BACKWARD = "autograd::engine::evaluate_function"
# Steps before one is timed: the graph is captured in the last of them.
WARM_UP = 4


def measure_parts(
    *,
    cases: list[str] | None = None,
    hidden_size: int = 128,
    steps: int = 5,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Time of a training step by its parts.

    Args:
        cases: some of "3,416 items", "40,981 items", "1,000,000 items"; all without it
        hidden_size: size of the vectors of items
        steps: that are profiled
        device: cuda or cpu; auto takes a GPU if there is one
        out: JSONL file that gets a line for each case

    Raises:
        ConfigError: a case is not known, or a number is wrong.
    """
    for name in cases or ():
        if name not in CASES:
            raise ConfigError(f"no case {name!r}: choose from {'; '.join(CASES)}")
    if steps < 1:
        raise ConfigError(f"steps is {steps}: it must be at least 1")
    device = resolve_device(device)
    for name in cases or CASES:
        given, form = CASES[name]
        size = {**given, "hidden_size": hidden_size}
        found = alone(measured, size, form, steps, device)
        line = {"bench": "step parts", "case": name, "form": form, **size, **found}
        print(line, flush=True)
        if out is not None:
            append_result(out, {**line, **provenance(device)})


def measured(size: dict[str, int], form: str, steps: int, device: str) -> dict[str, Any]:
    """Milliseconds of a step, and of its parts."""
    training = TrainingConfig(**{"device": device, **FORMS[form]})
    step, _ = training_step(size, training)
    for _ in range(WARM_UP):
        step()
    ms = 1e3 * statistics.median(seconds(step, device) for _ in range(steps))
    parts = parts_of_step(size, training, steps)
    return {
        "ms": round(ms, 3),
        "parts_ms": {name: round(parts.get(name, 0.0), 3) for name in PARTS},
        "steps": steps,
    }


def parts_of_step(size: dict[str, int], training: TrainingConfig, steps: int) -> dict[str, float]:
    """Milliseconds of the parts of a step that is launched operation by operation."""
    made, counts = training_parts(size, training)
    batch = drawn(counts, size["events"], size["length"]).to(made.fabric.device)
    update = Update(marked(made), training.clip_norm)
    given = Step(batch, None, size["events"], padded=True)
    for _ in range(WARM_UP):
        update(given, training.learning_rate)
    activities = [ProfilerActivity.CPU]
    if made.fabric.device.type == "cuda":
        torch.cuda.synchronize()
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            with record_function(MARK + OPTIMIZER):
                update(given, training.learning_rate)
        if made.fabric.device.type == "cuda":
            torch.cuda.synchronize()
    totals = totals_by_part(profiler.events() or (), on_gpu=len(activities) > 1)
    return {name: total / 1e3 / steps for name, total in totals.items()}


def marked(parts: Parts) -> Parts:
    """The parts of a training whose operations say what they belong to."""
    model: Any = parts.model
    for layer in model.layers:
        layer.attention.forward = _marking(ATTENTION, layer.attention.forward)
        layer.with_attended = _marking(FEED_FORWARD, layer.with_attended)
        layer.finish = _marking(FEED_FORWARD, layer.finish)
    model.encode = _marking(INPUTS, model.encode)
    objective: Any = _marking(LOSS, parts.objective)
    return dataclasses.replace(parts, objective=objective)


def _marking(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(MARK + name):
            return function(*arguments, **options)

    return call


def totals_by_part(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Microseconds of kernels, or of operations, by the part they are of.

    Args:
        events: of PyTorch's profiler.
    """
    events = list(events)
    # An operation and the computation of its gradients have the same number. Others before it, of
    # which there are no gradients, have it as well: the last one counts.
    forward: dict[int, str] = {}
    for event in sorted(events, key=lambda each: each.time_range.start):
        if event.sequence_nr >= 0 and not _is_backward(event):
            forward[event.sequence_nr] = _part(event, {})
    totals: dict[str, float] = {}
    for event in events:
        spent = sum(kernel.duration for kernel in event.kernels)
        if not on_gpu:
            spent = event.self_cpu_time_total
        part = _part(event, forward)
        totals[part] = totals.get(part, 0.0) + spent
    return totals


def _is_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(BACKWARD):
            return True
        event = event.cpu_parent
    return False


def _part(event: Any, forward: Mapping[int, str]) -> str:
    """The innermost mark around an operation; where gradients are computed, that of theirs."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        if event.name.startswith(BACKWARD):
            return forward.get(event.sequence_nr, OTHER)
        event = event.cpu_parent
    return OTHER
