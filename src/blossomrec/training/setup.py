"""From a configuration to what the loop needs: Fabric, batches, loss, optimizer, learning rate."""

from __future__ import annotations

import logging
import math
import resource
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from blossomrec.config import RunConfig, TrainingConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.log import EventLog
from blossomrec.data.windows import gather_index
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.losses import TrainingLoss, build_loss
from blossomrec.models.sequence import SequenceModel
from blossomrec.training.objective import Objective
from blossomrec.training.shape import Shape, graph_shape

_UNDECAYED_MODULES = (nn.Embedding, nn.LayerNorm, nn.RMSNorm)
_UNDECAYED_NAMES = ("bias", "position", "embedding")


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms, embeddings and learned positions do not."""
    decayed, undecayed = split_parameters(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=fused
    )


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters with and without weight decay, each in order of definition."""
    decayed, undecayed, met = [], [], set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in met:
                continue
            met.add(id(parameter))
            plain = parameter.ndim < 2 or isinstance(module, _UNDECAYED_MODULES)
            plain = plain or any(part in name for part in _UNDECAYED_NAMES)
            (undecayed if plain else decayed).append(parameter)
    return decayed, undecayed


class LearningRate:
    """Linear warm-up to the peak, then constant or a half cosine to zero at ``total_steps``.

    ``warmup_steps`` are those asked for, but no more than a tenth of all. A pure function of the
    step, so that resuming needs no state.
    """

    def __init__(self, config: TrainingConfig, total_steps: int):
        self.config = config
        self.total_steps = total_steps
        self.warmup_steps = min(config.warmup_steps, total_steps // 10)

    def __call__(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        peak, warmup = self.config.learning_rate, self.warmup_steps
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.config.schedule == "constant":
            return peak
        share = (step - warmup) / max(1, self.total_steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


try:
    from lightning_fabric import Fabric
except ImportError:
    # The package `lightning` brings the same Fabric under its own name.
    from lightning.fabric import Fabric  # pyright: ignore[reportMissingImports]


def open_fabric(config: TrainingConfig) -> Fabric:
    """Fabric on one device, in the precision asked for.

    Raises:
        ConfigError: ``device`` is cuda and there is none.
    """
    device = resolve_device(config.device, "training.device")
    for name in ("lightning_fabric", "lightning.fabric"):
        # It would announce its precision, and tips, where silence was asked for.
        logging.getLogger(name).setLevel(logging.WARNING)
    precision = resolve_precision(config, device)
    return Fabric(accelerator=device, devices=1, precision=precision)


def resolve_precision(config: TrainingConfig, device: str) -> Literal["32-true", "bf16-mixed"]:
    """The precision that ``config`` stands for on a device, "cpu" or "cuda"."""
    if config.precision == "auto":
        return "bf16-mixed" if device == "cuda" else "32-true"
    return config.precision


def peak_mib(device: torch.device) -> float:
    """Most memory held so far in MiB: of torch on the GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@dataclass(frozen=True)
class Parts:
    """What takes part in a training step.

    ``objective`` and ``stepper`` are the model with its loss and the optimizer as Fabric wraps
    them, ``model`` and ``optimizer`` the bare ones, which are stored. ``shape`` is that of all
    batches where a step is one CUDA graph, None elsewhere.
    """

    fabric: Fabric
    model: SequenceModel
    optimizer: torch.optim.Optimizer
    loss: TrainingLoss
    objective: Any
    stepper: Any
    batches: TrainingBatches
    learning_rate: LearningRate
    shape: Shape | None


def build_parts(
    model: SequenceModel, log: EventLog, train_end: np.ndarray, config: RunConfig, fabric: Fabric
) -> Parts:
    """Everything for training ``model``, which is moved to the device of ``fabric``.

    Raises:
        ConfigError: the model was built for another catalogue, or ``training.graph`` is on where
            there can be none.
        DataError: there is nothing to train on.
    """
    if model.num_items != log.num_items:
        raise ConfigError(
            f"the model has {model.num_items} items, {log.folder} has {log.num_items}"
        )
    batches = model.training_batches(log, train_end, config)
    loss = build_loss(config.training, training_counts(log, train_end), log.num_items)
    # Before the optimizer is built, whose fused form wants the parameters where they will stay.
    model.to(fabric.device)
    optimizer = build_optimizer(model, config.training)
    objective = Objective(model, loss, selector_weight=config.model.selector_weight)
    wrapped, stepper = fabric.setup(objective, optimizer)
    rate = LearningRate(config.training, config.training.epochs * batches.steps(0))
    shape = graph_shape(config, batches, fabric.device)
    return Parts(fabric, model, optimizer, loss, wrapped, stepper, batches, rate, shape)


def training_counts(log: EventLog, train_end: np.ndarray) -> np.ndarray:
    """Training events of each item, int64 [I]."""
    index = gather_index(np.asarray(log.offsets[:-1]), np.asarray(train_end))
    return np.bincount(log.items[index], minlength=log.num_items)
