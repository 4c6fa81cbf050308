"""What is minimised: the loss of the predictions and of the block selector, for one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blossomrec.data.batches import Batch
from blossomrec.losses import TrainingLoss
from blossomrec.models.sequence import SequenceModel
from blossomrec.training.shape import Shape, padded


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
        lessons: Tensor | None = None,
    ) -> Losses:
        """Losses of a packed batch.

        Args:
            items: int64 [T].
            targets: int64 [T].
            cu_seqlens: int32 [B+1].
            max_length: length of the longest history, or more.
            positions: rows of the events that are predicted from; None for all with a target.
            lessons: rows that may teach the selector, see ``encode``; None: those that are
                predicted from, for where nothing is it does not matter what is selected.
        """
        taught = self.selector_weight > 0
        if taught and lessons is None:
            lessons = positions
            if positions is None:
                lessons = torch.arange(len(items), device=items.device)
        encoded = self.model.encode(
            items, cu_seqlens, max_length, lessons=lessons if taught else None
        )
        hidden = encoded.hidden
        if positions is not None:
            hidden, targets = hidden.index_select(0, positions), targets.index_select(0, positions)
        loss = self.loss(hidden, self.model.output_weight(), targets)
        if not taught or encoded.selector_loss is None:
            return Losses(loss, loss, None)
        total = loss + self.selector_weight * encoded.selector_loss
        return Losses(total, loss, encoded.selector_loss)


class Step(NamedTuple):
    """A batch on its device, the events in it that have a target (None: all), and their number.

    Or, where batches have one shape, the batch on the host and ``numbers`` of :func:`padded`.
    """

    batch: Batch
    positions: Tensor | None
    num_targets: int
    numbers: Tensor | None = None


def device_steps(
    batches: Iterator[Batch], device: torch.device, shape: Shape | None = None
) -> Iterator[Step]:
    """Move batches to the device without waiting for it, or pad those that fit a shape.

    Targets are looked up here, on the host: finding them on a GPU would stop the loop.
    """
    for batch in batches:
        wanted = batch.targets >= 0
        count = int(wanted.sum())
        numbers = None if shape is None else padded(batch, shape)
        if numbers is not None:
            numbers = numbers.pin_memory() if device.type == "cuda" else numbers
            yield Step(batch, None, count, numbers)
            continue
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
