"""What decides how training goes on, random generators included, as what can be stored."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blossomrec.losses import TrainingLoss
from blossomrec.training.average import WeightAverage
from blossomrec.training.sparse.table import RowTable

CPU = torch.device("cpu")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Within, all generators of :func:`seed_everything` are seeded; then they go on as before.

    What the caller draws afterwards does not depend on what was done within, nor on the seed.
    """
    before = capture_generators(device)
    try:
        seed_everything(seed, device)
        yield
    finally:
        restore_generators(*before, device)


def seed_everything(seed: int, device: torch.device = CPU) -> None:
    """Seed the global generators of Python, NumPy and torch, those of the CPU and of ``device``."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed, which seeds all GPUs, even those that are not used.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def capture_generators(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of all generators, as tensors and as JSON-ready numbers."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numbers = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    return tensors, numbers


def restore_generators(
    tensors: dict[str, Tensor], numbers: dict[str, Any], device: torch.device
) -> None:
    """Put all generators back; a CUDA state is used where the device is a GPU and it is there."""
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


@dataclass
class TrainingState:
    """Where training stands; every field is JSON-ready.

    Of the epoch under way: ``epoch_step`` steps done, ``epoch_seconds``, ``epoch_events`` read,
    ``epoch_targets``, how much those predicted count together, ``loss_sum`` over these and, where
    there is one, the sum of the selector loss over steps.
    """

    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    epoch_seconds: float = 0.0
    epoch_events: int = 0
    epoch_targets: float = 0
    loss_sum: float = 0.0
    selector_sum: float | None = None
    seconds: float = 0.0
    durations: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    not_better: int = 0
    peak_mib: float = 0.0
    log_size: int = 0

    def next_epoch(self) -> None:
        """Count the epoch under way as done and begin another."""
        self.durations.append(self.epoch_seconds)
        self.epoch += 1
        self.epoch_step = self.epoch_events = self.epoch_targets = 0
        self.epoch_seconds = self.loss_sum = 0.0
        self.selector_sum = None


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds besides numbers and random generators.

    ``table`` has one of the model's parameters where the optimizer does not.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: TrainingLoss
    average: WeightAverage
    device: torch.device
    table: RowTable | None = None


def capture(state: TrainingState, parts: Stored) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A copy, in host memory, of all there is to store: tensors by name, and JSON-ready numbers."""
    random_tensors, random_numbers = capture_generators(parts.device)
    stored = {
        "model": parts.model.state_dict(),
        "optimizer": _optimizer_tensors(parts),
        "loss": parts.loss.state_dict(),
        "average": parts.average.state_dict(),
        "random": random_tensors,
    }
    tensors = {f"{part}.{name}": t for part, named in stored.items() for name, t in named.items()}
    return host_copy(tensors), {"training": asdict(state), "random": random_numbers}


def restore(tensors: dict[str, Tensor], numbers: dict[str, Any], parts: Stored) -> TrainingState:
    """Put everything, random generators included, back to where ``capture`` found it."""
    parts.model.load_state_dict(_part(tensors, "model"))
    load_optimizer_state(parts.model, parts.optimizer, optimizer_state(tensors), parts.table)
    parts.loss.load_state_dict(_part(tensors, "loss"))
    parts.average.load_state_dict(_part(tensors, "average"))
    restore_generators(_part(tensors, "random"), numbers["random"], parts.device)
    known = {entry.name for entry in fields(TrainingState)}
    return TrainingState(**{k: v for k, v in numbers["training"].items() if k in known})


def host_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory, none of which shares its storage with another."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _optimizer_tensors(parts: Stored) -> dict[str, Tensor]:
    states = {
        name: parts.optimizer.state.get(parameter, {})
        for name, parameter in parts.model.named_parameters()
    }
    if parts.table is not None:
        states[parts.table.name] = parts.table.state_dict()
    return {f"{name}:{key}": each for name, of in states.items() for key, each in of.items()}


def optimizer_state(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of all that was captured, the optimizer's state of each parameter, by name."""
    named: dict[str, dict[str, Tensor]] = {}
    for place, value in _part(tensors, "optimizer").items():
        name, key = place.rsplit(":", 1)
        named.setdefault(name, {})[key] = value
    return named


def load_optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    named: dict[str, dict[str, Tensor]],
    table: RowTable | None = None,
) -> None:
    """Put the state of each parameter, by name, into the optimizer, that of a table into it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    # What row-wise AdaGrad has kept says nothing to AdamW.
    states = {
        index: named[name] for index, name in enumerate(ordered) if "exp_avg" in named.get(name, {})
    }
    # Through the optimizer's own loading, which knows where and how it wants its tensors.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    if table is not None:
        table.load_state_dict(named.get(table.name, {}))


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    start = f"{part}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
