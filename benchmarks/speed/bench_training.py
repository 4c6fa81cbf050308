"""One epoch over the real batches of a prepared log, as ``blossomrec train`` goes through it.

Batches are made and moved, gradients clipped, losses watched and weights updated as in a training;
validation and checkpoints, which are not of the epoch, are left out. Some steps of another epoch go
before, so that what is compiled or captured once does not count. On a GPU steps are replayed as a
CUDA graph, as they are by default, and also launched one operation after another. ``--lengths`` are
the longest histories that the model sees, ``--tokens`` the events of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch

from benchmarks.speed.architectures import Architecture, architectures, graph_choices
from benchmarks.speed.bench_options import ONLY_16_BITS, BenchOptions, is_blossom
from benchmarks.speed.instruments.memory import peak_mib
from benchmarks.speed.instruments.parity import Check, largest_error
from benchmarks.speed.instruments.timing import seconds
from benchmarks.speed.speed_lines import Line, result_line
from blossomrec.config import EvaluationConfig, RunConfig, TrainingConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError
from blossomrec.models import build_model
from blossomrec.training.objective import device_steps
from blossomrec.training.progress import Silence
from blossomrec.training.setup import Parts, build_parts, open_fabric
from blossomrec.training.state import seeded
from blossomrec.training.trainer import Trainer

LENGTHS = {"cpu": (200,), "cuda": (200, 1_024)}
TOKENS = {"cpu": 8_192, "cuda": 8_192}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed"}
WARM_UP = 5
# Events of the batch that parity is checked on, whose definition has a mask of their square.
CHECKED_TOKENS = 2_048
# Through two layers, in which rounding to 16 bits can change a choice of blocks, and the loss.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Case:
    """An attention, the longest history that the model sees, and whether steps are a graph."""

    architecture: Architecture
    length: int
    graph: bool = False

    @property
    def impl(self) -> str:
        return self.architecture.impl


class TimedTrainer(Trainer):
    """A training that goes through batches and leaves nothing behind."""

    def __init__(self, parts: Parts, config: TrainingConfig):
        # Neither validation nor checkpoints nor log take part in a step.
        nothing = cast(Any, None)
        super().__init__(parts, nothing, nothing, nothing, Silence(), config, {})
        self.events = 0

    def go_through(self, epoch: int, steps: int | None) -> None:
        """The first ``steps`` batches of an epoch, all when None, until the device is done."""
        self.parts.objective.train()
        self.events = 0
        ahead = self.parts.batches.epoch(epoch)
        with closing(cast(Generator, ahead)):
            for step in islice(device_steps(ahead, self.device, self.parts.shape), steps):
                self.events += len(step.batch.items)
                self._account(self._take(step))
        self._account(self.watch.flush())


def cases(options: BenchOptions) -> list[Case]:
    """All that is to be measured, by rising length.

    Raises:
        ConfigError: there is no log, or the type is none that is trained in.
    """
    if options.log is None:
        raise ConfigError("--log is needed to bench training: a prepared log with real histories")
    if options.dtype not in PRECISIONS:
        raise ConfigError("dtype is float16: training is in float32 or bfloat16")
    return [
        Case(each, length, graph)
        for length in options.lengths
        for each in architectures(options)
        for graph in graph_choices(each, options)
        if options.wants(each.impl)
    ]


def checks(options: BenchOptions) -> Iterator[Check]:
    """Loss and gradient of the embeddings on one real batch, beside the reference in float32."""
    exact = dataclasses.replace(
        options, dtype=torch.float32, tokens=min(options.tokens, CHECKED_TOKENS)
    )
    for case in dict.fromkeys(cases(options)):
        if is_blossom(case.impl) and not case.graph:
            dtype = options.dtype if case.impl in ONLY_16_BITS else torch.float32
            measured = _first_batch(case, dataclasses.replace(exact, dtype=dtype))
            error = largest_error(measured, _first_batch(case, exact, True))
            name = f"training with {case.impl} {case.architecture.compress}"
            yield Check(name, error, TOLERANCE[dtype])


def measure(case: Case, options: BenchOptions) -> Line:
    """One line of results."""
    trainer, log = _trainer(case, options)
    all_steps = trainer.parts.batches.steps(0)
    steps = min(options.steps or all_steps, all_steps)
    taken: list[float] = []

    def epoch() -> None:
        trainer.go_through(1, WARM_UP)
        taken.append(seconds(lambda: trainer.go_through(0, steps), options.device))

    memory = peak_mib(epoch, options.device)
    per_step = taken[0] / steps
    return result_line(
        "training",
        case.impl,
        case.architecture.layout,
        length=case.length,
        tokens=options.tokens,
        dtype=options.dtype,
        device=options.device,
        compress=case.architecture.compress,
        forward_backward_ms=1e3 * per_step,
        peak_mib=memory,
        log=log.folder.name,
        steps=steps,
        graph=case.graph,
        epoch_seconds=round(per_step * all_steps, 3),
        tokens_per_second=round(trainer.events / taken[0]),
    )


def _trainer(
    case: Case, options: BenchOptions, reference: bool = False
) -> tuple[TimedTrainer, EventLog]:
    training = TrainingConfig(
        tokens_per_batch=options.tokens,
        device="cuda" if options.device == "cuda" else "cpu",
        precision=cast(Any, PRECISIONS[options.dtype]),
        graph="on" if case.graph else "off",
    )
    model_config = case.architecture.config(case.length, reference=reference)
    config = RunConfig(model_config, training, EvaluationConfig())
    log = EventLog.open(cast(Any, options.log))
    with seeded(training.seed):
        model = build_model(config.model, log.num_items)
    train_end = make_split(log, config.evaluation).train_end
    parts = build_parts(model, log, train_end, config, open_fabric(training))
    return TimedTrainer(parts, training), log


def _first_batch(case: Case, options: BenchOptions, reference: bool = False) -> list[torch.Tensor]:
    """Loss, and gradient of the embeddings, without dropout."""
    parts = _trainer(case, options, reference)[0].parts
    parts.objective.eval()
    ahead = parts.batches.epoch(0)
    with closing(cast(Generator, ahead)):
        step = next(device_steps(ahead, parts.fabric.device))
    with seeded(0, parts.fabric.device):
        losses = parts.objective(step)
    parts.fabric.backward(losses.total)
    return [losses.total.detach(), cast(torch.Tensor, parts.model.item_embeddings.weight.grad)]
