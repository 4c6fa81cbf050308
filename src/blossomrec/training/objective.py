"""What is minimised: the loss of the predictions and of the block selector, for one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blossomrec.data.batches import Batch
from blossomrec.losses import TrainingLoss
from blossomrec.models.sequence import SequenceModel


class Losses(NamedTuple):
    """Scalars: what to minimise and its parts; ``selector`` is None where the model gives none."""

    total: Tensor
    loss: Tensor
    selector: Tensor | None


class Objective(nn.Module):
    """The model with its loss, as one module whose ``forward`` is the whole of a training step.

    In one ``forward`` because that is where precision, and gradients across devices, are handled.
    """

    def __init__(self, model: SequenceModel, loss: TrainingLoss, *, selector_weight: float):
        super().__init__()
        self.model = model
        self.loss = loss
        self.selector_weight = selector_weight

    def forward(
        self,
        items: Tensor,
        targets: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        positions: Tensor | None,
    ) -> Losses:
        """Losses of a packed batch; ``positions`` are the events with a target, None for all."""
        taught = self.selector_weight > 0
        # Where nothing is predicted from, it does not matter what is selected.
        predicting = (
            torch.arange(len(items), device=items.device) if positions is None else positions
        )
        lessons = predicting if taught else None
        encoded = self.model.encode(items, cu_seqlens, max_length, lessons=lessons)
        hidden = encoded.hidden
        if positions is not None:
            hidden, targets = hidden.index_select(0, positions), targets.index_select(0, positions)
        loss = self.loss(hidden, self.model.output_weight(), targets)
        if not taught or encoded.selector_loss is None:
            return Losses(loss, loss, None)
        total = loss + self.selector_weight * encoded.selector_loss
        return Losses(total, loss, encoded.selector_loss)


class Step(NamedTuple):
    """A batch on its device, the events in it that have a target (None: all), and their number."""

    batch: Batch
    positions: Tensor | None
    num_targets: int


def device_steps(batches: Iterator[Batch], device: torch.device) -> Iterator[Step]:
    """Move batches to the device without waiting for it.

    Targets are looked up here, on the host: finding them on a GPU would stop the loop.
    """
    for batch in batches:
        wanted = batch.targets >= 0
        count = int(wanted.sum())
        positions = None if count == len(wanted) else wanted.nonzero()[:, 0]
        if device.type == "cuda":
            batch = _pinned(batch)
            positions = None if positions is None else positions.pin_memory()
        if positions is not None:
            positions = positions.to(device, non_blocking=True)
        yield Step(batch.to(device), positions, count)


def _pinned(batch: Batch) -> Batch:
    return Batch(
        batch.items.pin_memory(),
        batch.targets.pin_memory(),
        batch.cu_seqlens.pin_memory(),
        batch.max_length,
    )
