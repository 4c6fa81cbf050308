"""From a configuration to the things the loop turns: batches, loss, optimizer, learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blossomrec.config import RunConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.log import EventLog
from blossomrec.data.ragged import gather_index
from blossomrec.errors import ConfigError
from blossomrec.losses import TrainingLoss, build_loss
from blossomrec.models.sequence import SequenceModel
from blossomrec.training.device import Fabric
from blossomrec.training.objective import Objective
from blossomrec.training.optimizer import LearningRate, build_optimizer
from blossomrec.training.shape import Shape, graph_shape


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
