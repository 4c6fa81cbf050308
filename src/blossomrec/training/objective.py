"""What is minimised: the loss of the predictions and of the block selector, for one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from blossomrec.data.batch import Batch
from blossomrec.losses import SampledLoss, TrainingLoss, weighted_mean
from blossomrec.models.fused.embedding import summed_once
from blossomrec.models.sequence import SequenceModel
from blossomrec.training.shape import Shape
from blossomrec.training.sparse import RowTable


class Losses(NamedTuple):
    """Scalars: what to minimise and its parts; ``selector`` is None where the model gives none."""

    total: Tensor
    loss: Tensor
    selector: Tensor | None


class Objective(nn.Module):
    """The model with its loss, as one module whose ``forward`` is the whole of a training step.

    In one ``forward`` because that is where precision, and gradients across devices, are handled.

    Args:
        table: what gives the item vectors of a step, and gets their gradient; None where they are
            the model's.
    """

    def __init__(
        self,
        model: SequenceModel,
        loss: TrainingLoss,
        *,
        selector_weight: float,
        table: RowTable | None = None,
    ):
        super().__init__()
        self.model = model
        self.loss = loss
        self.selector_weight = selector_weight
        self.table = table

    def forward(self, step: Step) -> Losses:
        """Losses of a batch with targets, on the device of the model."""
        if self.table is None:
            return self._losses(step, self.loss)
        return self._of_rows(self.table, step)

    def _of_rows(self, table: RowTable, step: Step) -> Losses:
        """The losses, where of all items there are those of the batch and of the sample alone."""
        batch, loss = step.batch, cast(SampledLoss, self.loss)
        assert batch.targets is not None
        negatives, log_q = loss.draw(batch.items.device)
        # Where there is no target, no other row is needed for it.
        there = batch.targets >= 0
        targets = torch.where(there, batch.targets, batch.items)
        items, targets, negatives = table.take(batch.items, targets, negatives)
        batch = replace(batch, items=items, targets=torch.where(there, targets, -1))

        def of_sample(hidden: Tensor, weight: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
            return loss.of_sample(hidden, weight, targets, negatives, log_q, *weights)

        assert table.vectors is not None
        with self.model.on_rows(summed_once(table.vectors)):
            return self._losses(step.of(batch), of_sample)

    def _losses(self, step: Step, loss_of: Callable[..., Tensor]) -> Losses:
        batch, distilled = step.batch, self.selector_weight > 0
        encoded = self.model.encode(batch, distil_rows=step.distil_rows if distilled else None)
        assert batch.targets is not None
        hidden, targets = step.predicted(encoded.hidden), step.predicted(batch.targets)
        weight = self.model.output_weight() if encoded.catalogue is None else encoded.catalogue
        # A loss that takes no weights is never given any.
        counted = None if batch.target_weights is None else step.predicted(batch.target_weights)
        if self.model.own_history is None:
            given = () if counted is None else (counted,)
            loss = loss_of(hidden, weight, targets, *given)
        else:
            losses = self._rows(step, hidden, weight, targets)
            losses = self.model.mixed_losses(losses, encoded, batch, step.rows)
            there = targets >= 0
            loss = self._mean(step, losses, there.float() if counted is None else counted * there)
        if not distilled or encoded.selector_loss is None:
            return Losses(loss, loss, None)
        selector = self._distilled(step, encoded.selector_loss)
        return Losses(loss + self.selector_weight * selector, loss, selector)

    def _rows(self, step: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Losses of single rows, [M]."""
        return self.loss.rows(hidden, weight, targets)

    def _mean(self, step: Any, losses: Tensor, weights: Tensor) -> Tensor:
        """The mean of losses of single rows, [M], by how much each counts."""
        return weighted_mean(losses, weights)

    def _distilled(self, step: Any, loss: Tensor) -> Tensor:
        """The loss of the selector as it is added."""
        return loss


class Step:
    """A batch with targets, and the events from which something is predicted.

    Neither a tuple nor a dataclass: Fabric would go through its parts.

    Attributes:
        batch: on the device; on the host where it was padded for a graph.
        rows: of the events that are predicted from, int64, rising; None for all with a target.
        num_targets: how many events have a target.
        importance: how much these targets count, all together; each counts 1 unless it is told.
        distil_rows: of the events that the selector is distilled at, as of ``encode``; those that
            are predicted from where it is not given, for elsewhere it does not matter what is
            selected.
        padded: whether the batch has the shape of a graph.
    """

    def __init__(
        self,
        batch: Batch,
        rows: Tensor | None,
        num_targets: int,
        *,
        importance: float | None = None,
        distil_rows: Tensor | None = None,
        padded: bool = False,
    ):
        self.batch, self.rows, self.num_targets = batch, rows, num_targets
        self.importance = num_targets if importance is None else importance
        self.padded, self._distil_rows = padded, distil_rows

    @property
    def num_events(self) -> int:
        """Of the batch."""
        return len(self.batch.items)

    def predicted(self, events: Tensor) -> Tensor:
        """The entries, of [T, ...], of the events that are predicted from."""
        return events if self.rows is None else events.index_select(0, self.rows)

    def of(self, batch: Batch) -> Self:
        """The same of a batch of the same events."""
        step = copy.copy(self)
        step.batch = batch
        return step

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with ``function`` applied to every tensor."""
        step = copy.copy(self)
        for name, tensor in self.tensors().items():
            setattr(step, name, function(tensor))
        step.batch = self.batch.map(function)
        return step

    def copy_(self, other: Self) -> None:
        """Take over the numbers of a step of the same shape, on any device."""
        self.batch.copy_(other.batch)
        theirs = other.tensors()
        for name, tensor in self.tensors().items():
            tensor.copy_(theirs[name], non_blocking=True)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there besides those of the batch, by name."""
        return {name: each for name, each in vars(self).items() if isinstance(each, Tensor)}

    @property
    def distil_rows(self) -> Tensor:
        given = self.rows if self._distil_rows is None else self._distil_rows
        items = self.batch.items
        return torch.arange(len(items), device=items.device) if given is None else given


def device_steps(
    batches: Iterator[Batch], device: torch.device, shape: Shape | None = None
) -> Iterator[Step]:
    """Move batches to the device without waiting for it, or pad those that fit a shape."""
    pinned = device.type == "cuda"
    for batch in batches:
        step = None if shape is None else padded_step(batch, shape)
        if step is not None:
            yield step.map(Tensor.pin_memory) if pinned else step
            continue
        step = plain_step(batch)
        if pinned:
            step = step.map(lambda each: each.pin_memory().to(device, non_blocking=True))
        yield step


def plain_step(batch: Batch) -> Step:
    """A step of a batch as it is, on the host: looking for targets on a GPU would stop the loop."""
    rows, importance = _predicted(batch)
    tokens, count = len(batch.items), len(rows)
    # Where nothing counts the selector is distilled at every event: it has to be somewhere.
    distil_rows = None if count else torch.arange(tokens)
    rows = None if count == tokens else rows
    return Step(batch, rows, count, importance=importance, distil_rows=distil_rows)


def padded_step(batch: Batch, shape: Shape) -> Step | None:
    """A step of a shape on the host; None where the batch does not fit."""
    padded = batch.pad(shape.tokens, shape.histories, shape.max_length)
    rows, importance = _predicted(batch)
    count = len(rows)
    if padded is None or count > shape.targets:
        return None
    assert padded.targets is not None
    distil_rows, rows = rows if count else torch.arange(len(batch.items)), None
    if shape.targets < shape.tokens:
        # As many of those without a target as there is room for; they have no loss.
        predicted = padded.targets >= 0
        predicted[(~predicted).nonzero()[: shape.targets - count, 0]] = True
        rows = predicted.nonzero()[:, 0]
    end = shape.tokens
    distil_rows = pad(distil_rows, (0, end - len(distil_rows)), value=end)
    return Step(padded, rows, count, importance=importance, distil_rows=distil_rows, padded=True)


def _predicted(batch: Batch) -> tuple[Tensor, float | None]:
    """Rows of the events that have a target, and how much these count; None for 1 each."""
    assert batch.targets is not None
    rows, weights = (batch.targets >= 0).nonzero()[:, 0], batch.target_weights
    return rows, None if weights is None else float(weights[rows].double().sum())
