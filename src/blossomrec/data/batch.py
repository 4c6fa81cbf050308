"""A packed batch: histories one after another, without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.data.history import ITEMS_ALONE, History
from blossomrec.data.windows import boundaries
from blossomrec.errors import DataError

# What events that are none are filled up with, where it is not 0.
PADDING = {"targets": -1}


@dataclass(frozen=True, eq=False)
class Batch:
    """T events of B histories, packed: what goes from the data to the model, whole.

    Every tensor but ``cu_seqlens`` has one entry for each event. A tensor added here is moved,
    padded and copied with the others.

    Attributes:
        items: item rows, int64 [T].
        cu_seqlens: where each history starts and the last one ends, int32 [B+1].
        max_length: events of the longest history, or more.
        targets: the item row to predict at each event, -1 where there is none, int64 [T]; None
            where nothing is to be predicted.
        target_weights: float32 [T], how much each target counts; None where all count the same.
        times, asked, kinds, asked_kinds, context, users: [T, ...], as of :class:`History`; None
            where the model does not see them.

    Example:
        >>> batch = pack([[3, 1, 4], [1, 5]])
        >>> batch.cu_seqlens.tolist(), batch.max_length
        ([0, 3, 5], 3)
    """

    items: Tensor
    cu_seqlens: Tensor
    max_length: int
    targets: Tensor | None = None
    target_weights: Tensor | None = None
    times: Tensor | None = None
    asked: Tensor | None = None
    kinds: Tensor | None = None
    asked_kinds: Tensor | None = None
    context: Tensor | None = None
    users: Tensor | None = None

    @property
    def num_histories(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def last_rows(self) -> Tensor:
        """Row of the last event of each history, int64 [B]."""
        return self.cu_seqlens[1:].long() - 1

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def events(self) -> dict[str, Tensor]:
        """Those that have an entry for each event."""
        return {name: each for name, each in self.tensors().items() if name != "cu_seqlens"}

    def take(self, rows: Tensor, cu_seqlens: Tensor, max_length: int) -> Batch:
        """Events of this batch, int64 [T'], as other histories."""
        taken: dict[str, Any] = {name: each[rows] for name, each in self.events().items()}
        return Batch(**taken, cu_seqlens=cu_seqlens, max_length=max_length)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same with ``function`` applied to every tensor that is there."""
        mapped: dict[str, Any] = {name: function(each) for name, each in self.tensors().items()}
        return Batch(**mapped, max_length=self.max_length)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        device = torch.device(device)
        if self.items.device == device:
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch where it can be copied to a GPU without a wait."""
        return self.map(Tensor.pin_memory)

    def copy_(self, other: Batch) -> None:
        """Take over the numbers of a batch of the same shape, on any device."""
        theirs = other.tensors()
        for name, tensor in self.tensors().items():
            tensor.copy_(theirs[name], non_blocking=True)

    def pad(self, tokens: int, histories: int, max_length: int) -> Batch | None:
        """The batch, on the host, with so many events and histories; None where it does not fit.

        What is left of the events belongs to histories of their own, which have no targets; what
        is left of the histories has no events.
        """
        spare = tokens - len(self.items)
        lengths = self.cu_seqlens.diff().numpy().astype(np.int64)
        fillers = np.full(-(-max(spare, 0) // max_length), max_length)
        empty = histories - len(lengths) - len(fillers)
        if spare < 0 or empty < 0:
            return None
        edges = boundaries(np.concatenate([lengths, fillers, np.zeros(empty, np.int64)]))
        padded: dict[str, Any] = {
            name: pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, spare), value=PADDING.get(name, 0))
            for name, tensor in self.events().items()
        }
        cu_seqlens = torch.from_numpy(edges.clip(max=tokens).astype(np.int32))
        return Batch(**padded, cu_seqlens=cu_seqlens, max_length=max_length)


def pack(
    histories: Sequence[History | Sequence[int] | np.ndarray], inputs: Sequence[str] = ITEMS_ALONE
) -> Batch:
    """A batch, without targets, of histories; item rows alone are one, too.

    Args:
        inputs: names of the arrays of a history that the model takes.

    Raises:
        DataError: there is no history, one of them is empty, or it lacks an input.
    """
    given = [History.of(each) for each in histories]
    lengths = np.asarray([len(history) for history in given], dtype=np.int64)
    if len(lengths) == 0:
        raise DataError("there is no history to pack")
    if not lengths.all():
        raise DataError(f"history {int(np.argmin(lengths))} (counted from 0) has no events")
    return make_batch(lengths, {name: _joined(given, name) for name in inputs})


def _joined(histories: Sequence[History], name: str) -> np.ndarray:
    columns = list[np.ndarray]()
    for number, history in enumerate(histories):
        column = getattr(history, name, None)
        if column is None:
            raise DataError(f"history {number} (counted from 0) has no {name}")
        columns.append(column)
    return np.concatenate(columns)


def make_batch(
    lengths: np.ndarray,
    events: Mapping[str, np.ndarray],
    targets: np.ndarray | None = None,
    target_weights: np.ndarray | None = None,
) -> Batch:
    """The batch of histories of ``lengths`` [B] whose events have the arrays [T] of ``events``.

    A target that counts 0 is none.
    """
    columns = dict(events)
    if target_weights is not None and targets is not None:
        targets = np.where(target_weights > 0, targets, -1)
        columns["target_weights"] = target_weights.astype(np.float32, copy=False)
    if targets is not None:
        columns["targets"] = targets
    for name in ("items", "targets"):
        if name in columns:
            columns[name] = columns[name].astype(np.int64, copy=False)
    tensors: dict[str, Any] = {name: torch.from_numpy(each) for name, each in columns.items()}
    cu_seqlens = torch.from_numpy(boundaries(lengths).astype(np.int32))
    return Batch(**tensors, cu_seqlens=cu_seqlens, max_length=int(lengths.max()))


def next_events(items: Tensor, **more: Tensor | None) -> Batch:
    """The batch of one event of each of B users: item rows, int64 [B], and what else it has."""
    edges = torch.arange(len(items) + 1, dtype=torch.int32, device=items.device)
    return Batch(items, edges, 1, **more)
