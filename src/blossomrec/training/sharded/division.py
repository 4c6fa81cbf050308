"""Which part of a batch a rank has, and which rows of the item table it needs for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.data.batch import Batch
from blossomrec.data.windows import divided, each_once
from blossomrec.ranks import Ranks
from blossomrec.training.objective import Step, padded_step, plain_step
from blossomrec.training.shape import Shape

# Rows that each rank has room for from every other one, in a step of one shape, over as many as
# it needs at most: twice as many as where all ranks had as many of these.
ROOM = 2
# Numbers that all ranks are told of a part besides the rows that it needs.
_COUNT, _IMPORTANCE, _FITS, _WANTED = range(4)
_HEAD = 4


@dataclass(frozen=True)
class Part:
    """A rank's part of a batch as it was read.

    Attributes:
        batch: its histories, on the host; items, and targets where their vectors are needed, by
            their places among the wanted rows.
        step: of it, in the shape of a graph where it fits one; then there are as many places for
            the rows of each rank.
        targets: by rows of the catalogue, int64 [T].
        told: what all ranks are told of it, int64 [L], the same L everywhere: how many targets
            there are, how much these count, whether it is padded, K, and the wanted rows.
        event_share, events, seed: as of :class:`SharedStep`.
    """

    batch: Batch
    step: Step
    targets: Tensor
    told: Tensor
    event_share: float
    events: int
    seed: int


class SharedStep(Step):
    """A step of all ranks, of which this one has a part.

    Rows of the item table go from the ranks that have them to those that need them; all ranks know
    which, since each has told all others what it wants meanwhile.

    Attributes:
        targets: rows of the catalogue, int64 [T], -1 where there is none.
        wanted: rows of the whole table that this rank needs, int64 [K], rising. In a padded step
            there are as many of each rank, whose last row fills up what is left.
        sent: those of its own rows that it sends, from 0, int64 [S], rank after rank.
        counts: how many go to each rank, and come from it; None in a padded step, for as many.
        longest: the largest number of targets of a rank, at least 1, or more.
        event_share: of the events of the whole batch that are its own, a scalar; 0 where it has
            none.
        counted: how much the targets of the whole batch count, a scalar; 1 where none does.
        events: of the whole batch.
        seed: of what is drawn at this step and this rank.
        items: vectors of the catalogue's items that this rank has; set when there are.
    """

    items: Tensor

    def __init__(
        self,
        step: Step,
        part: Part,
        rows: tuple[np.ndarray, np.ndarray],
        *,
        counts: tuple[list[int], list[int]] | None,
        longest: int,
        importance: float,
    ):
        """step: of the ``part``, plain or padded; rows: wanted and sent ones."""
        vars(self).update(vars(step))
        spare = len(step.batch.items) - len(part.targets)
        self.targets = pad(part.targets, (0, spare), value=-1)
        self.wanted, self.sent = map(torch.from_numpy, rows)
        self.counts, self.longest = counts, longest
        self.event_share = torch.tensor(part.event_share)
        # Where nothing counts the sum is 0.
        self.importance, self.counted = importance, torch.tensor(importance or 1.0)
        self.events, self.seed = part.events, part.seed

    @property
    def num_events(self) -> int:
        return self.events


class Division:
    """Divides batches among ranks, as evenly as whole histories can be; each reads its part alone.

    Args:
        ranks: who gets a part.
        num_rows: of the item table.
        seed: of the training.
        with_targets: whether the vectors of the targets are needed, too.
        device: of the training.
        shape: that parts are padded to where all of them fit, and every rank has rows of the
            table; None for no graph.
    """

    def __init__(
        self,
        ranks: Ranks,
        num_rows: int,
        seed: int,
        *,
        with_targets: bool,
        device: torch.device | None = None,
        shape: Shape | None = None,
    ):
        self.ranks, self.num_rows, self.seed = ranks, num_rows, seed
        self.with_targets = with_targets
        self.device = torch.device("cpu") if device is None else device
        starts = [ranks.rows(num_rows, rank).start for rank in range(ranks.size)]
        self._bounds = np.array([*starts, num_rows])
        # Of rows among those that a batch needs; whatever is there of the others.
        self._places = np.empty(num_rows, np.int32)
        # What fills up is a row of the rank that sends it: all must have some.
        self.shape = shape if np.diff(self._bounds).all() else None
        self._room = 0
        if shape is not None:
            # The events of a history and its last target, or those that are masked.
            needed = shape.tokens + (shape.histories if with_targets else 0)
            largest = int(np.diff(self._bounds).max())
            self._room = min(-(-ROOM * needed // ranks.size), largest)

    def __call__(
        self,
        lengths: np.ndarray,
        read: Callable[[np.ndarray], Batch],
        point: tuple[int, int],
    ) -> Part:
        """This rank's part of a batch, which alone is read; see ``data.batches.Division``."""
        parts = divided(lengths, self.ranks.size)
        mine = parts[self.ranks.rank]
        # Every rank has something to encode: the shortest history, without targets.
        idle = not len(mine)
        batch = read(np.array([np.argmin(lengths)]) if idle else mine)
        if idle:
            batch = replace(batch, targets=torch.full_like(batch.items, -1))
        by_places, wanted = self._by_places(batch)
        step = self._padded(by_places, wanted) or plain_step(by_places)
        if self.device.type == "cuda":
            # By the thread that reads, so that the one that trains has less to do.
            step = step.map(Tensor.pin_memory)
        longest = max(int(lengths.min()), *(int(lengths[part].sum()) for part in parts))
        events = int(lengths.sum())
        seeds = np.random.SeedSequence(self.seed, spawn_key=(*point, self.ranks.rank))
        return Part(
            batch=by_places,
            step=step,
            targets=_targets(batch),
            told=_told(batch, wanted, step.padded, longest * (1 + self.with_targets)),
            event_share=0.0 if idle else len(batch.items) / events,
            events=events,
            seed=int(seeds.generate_state(1, np.uint32)[0]),
        )

    def steps(self, parts: Iterator[Part]) -> Iterator[SharedStep]:
        """Steps on the device, without waiting for it, or on the host where they are padded; the
        ranks tell each other of a part while the step before is taken."""
        waiting: tuple[Part, Callable[[], Tensor]] | None = None
        for part in parts:
            following = part, self.ranks.gather_later(part.told)
            if waiting is not None:
                yield self._step(waiting[0], waiting[1]())
            waiting = following
        if waiting is not None:
            yield self._step(waiting[0], waiting[1]())

    def _step(self, part: Part, told: Tensor) -> SharedStep:
        step = self.share(part, told)
        if self.device.type != "cuda":
            return step
        if step.padded:
            return step.map(_pinned)
        return step.map(lambda each: _pinned(each).to(self.device, non_blocking=True))

    def share(self, part: Part, told: Tensor) -> SharedStep:
        """The step on the host, once all are told of all parts, int64 [N * L]: padded where all
        parts are."""
        told = told.view(self.ranks.size, -1)
        importance = float(told[:, _IMPORTANCE].contiguous().view(torch.float64).sum())
        wanted = [each[_HEAD : _HEAD + int(each[_WANTED])].numpy() for each in told]
        edges = [np.searchsorted(each, self._bounds) for each in wanted]
        rank = self.ranks.rank
        sent = [
            each[edge[rank] : edge[rank + 1]] - self._bounds[rank]
            for each, edge in zip(wanted, edges, strict=True)
        ]
        options: dict[str, Any] = {"importance": importance}
        if self.shape is None or not told[:, _FITS].all():
            step = plain_step(part.batch) if part.step.padded else part.step
            rows = wanted[rank], np.concatenate(sent)
            counts = [len(each) for each in sent], np.diff(edges[rank]).tolist()
            longest = max(1, int(told[:, _COUNT].max()))
            return SharedStep(step, part, rows, counts=counts, longest=longest, **options)
        # The last row of a rank fills up what is left, so that rows rise and each is one.
        filled = np.repeat(self._bounds[1:] - 1, self._room)
        filled[self._slots(edges[rank])] = wanted[rank]
        travelling = np.full((len(sent), self._room), len(self.ranks.rows(self.num_rows)) - 1)
        for room, each in zip(travelling, sent, strict=True):
            room[: len(each)] = each
        rows = filled, travelling.reshape(-1)
        longest = self.shape.targets
        return SharedStep(part.step, part, rows, counts=None, longest=longest, **options)

    def _by_places(self, batch: Batch) -> tuple[Batch, np.ndarray]:
        """The batch with rows of the table by their places among those it needs; and these, each
        once, rising."""
        met, targets, count = batch.items.numpy(), _targets(batch), len(batch.items)
        there = targets >= 0
        if self.with_targets:
            met = np.concatenate([met, targets[there].numpy()])
        wanted = each_once(met)
        self._places[wanted] = np.arange(len(wanted))
        places = self._places[met].astype(np.int64)
        if self.with_targets:
            targets = torch.full_like(targets, -1)
            targets[there] = torch.from_numpy(places[count:])
        return replace(batch, items=torch.from_numpy(places[:count]), targets=targets), wanted

    def _padded(self, batch: Batch, wanted: np.ndarray) -> Step | None:
        """A part in the shape of a graph, with its rows at the places that they have there."""
        edges = np.searchsorted(wanted, self._bounds)
        if self.shape is None or np.diff(edges).max() > self._room:
            return None
        slots = torch.from_numpy(self._slots(edges))
        targets = _targets(batch)
        if self.with_targets:
            targets = torch.where(targets >= 0, slots[targets.clamp(min=0)], -1)
        return padded_step(replace(batch, items=slots[batch.items], targets=targets), self.shape)

    def _slots(self, edges: np.ndarray) -> np.ndarray:
        """Where wanted rows are among those that there is room for, given where each rank's begin
        and the last ones end, int64 [K]."""
        starts = np.arange(self.ranks.size) * self._room
        return np.arange(edges[-1]) + np.repeat(starts - edges[:-1], np.diff(edges))


def _told(batch: Batch, wanted: np.ndarray, fits: bool, room: int) -> Tensor:
    """What all ranks are told of a part; see :class:`Part`."""
    there, weights = _targets(batch) >= 0, batch.target_weights
    count = there.sum()
    importance = count.double() if weights is None else weights[there].double().sum()
    told = torch.zeros(_HEAD + room, dtype=torch.int64)
    told[_COUNT], told[_IMPORTANCE] = count, importance.view(torch.int64)
    told[_FITS], told[_WANTED] = fits, len(wanted)
    told[_HEAD : _HEAD + len(wanted)] = torch.from_numpy(wanted)
    return told


def _targets(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.targets


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()
