"""Training on associative recall over long histories, and what the selector finds afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.selector.recall_measures import (
    VALIDATION_SEED,
    RecallMeasures,
    max_recall_layer,
    measure_recall,
)
from benchmarks.selector.recall_options import SHORTEST, RecallTraining
from benchmarks.selector.recall_step import RecallStep, optimizer_of, stage_batches
from blossomrec.attention import BlossomAttention
from blossomrec.config import check
from blossomrec.data.batching.prefetch import prefetch
from blossomrec.models.sequence import SequenceModel

# A training on short histories goes on to longer ones at this accuracy.
MASTERED = 0.92
# Steps between two looks at the accuracy, for each of which the device is waited for.
_LOOK = 20
# Fewest steps at a length.
_FEWEST = 60
# Steps at the last length between two measurements on histories of validation, and their queries.
_WATCH, _WATCHED_QUERIES = 500, 128


@dataclass(frozen=True)
class Watched:
    """A model in the middle of its training, on histories of validation.

    Attributes:
        step: of the whole training, after which it was measured.
        length: of the histories, in events.
        accuracy: share of right answers.
        recall: share of the planted blocks selected in the layer that finds most, mean over heads;
            None where nothing is selected.
    """

    step: int
    length: int
    accuracy: float
    recall: float | None


@dataclass(frozen=True)
class RecallTrained:
    """What came of a training.

    Attributes:
        measures: at the longest length that was come to.
        steps: taken in all.
        finished: whether time sufficed for all steps.
        gradient_norms: by length, at the last step there, of each part of the model.
        course: at the end of each length, and now and then at the last.
    """

    measures: RecallMeasures
    steps: int
    finished: bool
    gradient_norms: dict[int, dict[str, float]]
    course: tuple[Watched, ...]


def train_recall(
    model: SequenceModel,
    training: RecallTraining,
    *,
    device: torch.device,
    graph: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> RecallTrained:
    """Train a model in place and measure it.

    Args:
        model: on ``device``, in whatever precision autocast gives there: bfloat16 on a GPU.
        graph: whether, on a GPU, a step is replayed as a CUDA graph, so that nothing in the model
            may wait for the device.
        report: gets a line at the end of each stage.
    """
    check(training)
    optimizer = optimizer_of(model, training, device)
    (group,) = optimizer.param_groups
    length, step, finished = SHORTEST, 0, False
    norms, course = {}, []
    stage_began = time.monotonic()
    ends = stage_began + training.seconds
    late = training.seconds <= 0

    def watch() -> None:
        _select(model, model.config.top_n)
        course.append(_watched(model, training, length, step, device))

    while not (finished or late):
        last, since, left = length == training.length, 0, False
        update = RecallStep(model, optimizer, training, length, graph=graph, device=device)
        model.train()
        for numbers in _batches(training, length, step, device):
            share = 1.0
            if last:
                passed = (time.monotonic() - stage_began) / (ends - stage_began)
                share = _last_rate(max(since / training.last_steps, passed))
            rate = min(share, (step + 1) / training.warmup_steps)
            group["lr"].fill_(training.learning_rate * rate)
            if training.selector_falls:
                update.selector_weight.fill_(training.selector_weight * share)
            if _select(model, training.selected(model.config.top_n, length, since)):
                update.capture_again()
            update(numbers)
            step, since = step + 1, since + 1
            late = time.monotonic() >= ends
            spent = since >= training.most_steps(length)
            looked = not last and since >= _FEWEST and since % _LOOK == 0
            left = late or spent or (looked and float(update.accuracy) > MASTERED)
            if left:
                break
            if last and since % _WATCH == 0:
                watch()
                model.train()
        norms[length] = gradient_norms(model, float(update.norm))
        watch()
        finished = last and since >= training.last_steps
        took = 1e3 * (time.monotonic() - stage_began) / since
        report(
            f"{length} events: accuracy {float(update.accuracy):.2f} after {step} steps, "
            f"of validation {course[-1].accuracy:.2f}, {took:.1f} ms a step"
        )
        # Looking takes time, too.
        late = late or time.monotonic() >= ends
        if not (last or late):
            length, stage_began = 2 * length, time.monotonic()
    measures = measure_recall(model, training, length, device)
    return RecallTrained(measures, step, finished, norms, tuple(course))


def _batches(
    training: RecallTraining, length: int, first_step: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches of one length on the device; others make them ahead and in memory it can read."""
    made = stage_batches(training, length, first_step)
    if device.type == "cuda":
        made = (numbers.pin_memory() for numbers in made)
    with contextlib.closing(prefetch(made)) as ahead:
        for numbers in ahead:
            yield from numbers.to(device, non_blocking=True)


def _select(model: SequenceModel, top_n: int) -> bool:
    """Let ``top_n`` blocks be selected; whether that changes anything."""
    layers = [each for each in model.modules() if isinstance(each, BlossomAttention)]
    changed = any(layer.spec.top_n != top_n for layer in layers)
    for layer in layers:
        layer.spec = dataclasses.replace(layer.spec, top_n=top_n)
    return changed


def _watched(
    model: SequenceModel, training: RecallTraining, length: int, step: int, device: torch.device
) -> Watched:
    measures = measure_recall(
        model,
        training,
        length,
        device,
        queries=_WATCHED_QUERIES,
        first_seed=VALIDATION_SEED,
        profile=False,
    )
    layer = max_recall_layer(measures)
    recall = None if layer is None else round(measures.recall[layer], 4)
    return Watched(step, length, round(measures.accuracy, 4), recall)


def gradient_norms(model: SequenceModel, before_clipping: float = 1.0) -> dict[str, float]:
    """Norm of the gradients of each part: "attention.compress", "attention.query", "inner", ...

    The layers together; 0 for a part without gradient.

    Args:
        before_clipping: norm of all gradients before they were clipped to a norm of 1.
    """
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = re.sub(r"^layers\.\d+\.", "", name)
        part = ".".join(part.split(".")[: 2 if part.startswith("attention.") else 1])
        norm = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        squares[part] = squares.get(part, 0.0) + norm**2
    return {part: max(1.0, before_clipping) * math.sqrt(each) for part, each in squares.items()}


def _last_rate(passed: float) -> float:
    """Share of the peak learning rate at the last length: falls to a tenth in the last half."""
    return min(1.0, max(0.1, 2 * (1 - passed)))
