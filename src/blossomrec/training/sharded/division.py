"""Which part of a batch a rank has, and which rows of the item table it needs for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from threading import Lock
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

# How many rows more a part has room for than those have that it was told by, as a share of these
# and at least.
SPARE_SHARE, SPARE = 1 / 8, 8
# Numbers that all ranks are told of a part before the rows that it needs; that by which targets
# count has 64 bits.
_COUNT, _FITS, _WANTED = range(3)
_IMPORTANCE, _HEAD = slice(4, 6), 6


@dataclass(frozen=True)
class Part:
    """A rank's part of a batch as it was read.

    Attributes:
        batch: its histories, on the host, by rows of the catalogue.
        step: of it, with items, and targets where their vectors are needed, by their places among
            the wanted rows; in the shape of a graph where it fits one, and then there are as many
            places for the rows of each rank.
        wanted: rows of the whole table that it needs, int64 [K], each once, rising.
        told: what all ranks are told of it, int32 [L], the same L everywhere: how many targets
            there are, how much these count, whether it is padded, K, and the wanted rows.
        limit: how many rows the part of any rank may need.
        event_share, events, seed: as of :class:`SharedStep`.
    """

    batch: Batch
    step: Step
    wanted: np.ndarray
    told: Tensor
    limit: int
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
            there are as many of each rank, some of them more than once.
        sent: those of its own rows that it sends, from 0, int64 [S], rank after rank.
        counts: how many go to each rank, and come from it; None in a padded step, for as many.
        longest: the largest number of targets of a rank, at least 1, or more.
        event_share: of the events of the whole batch that are its own, a scalar; 0 where it has
            none.
        counted: how much the targets of the whole batch count, a scalar; 1 where none does.
        target_share: its own part of that, a scalar.
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
        targets = _targets(part.batch)
        spare = len(step.batch.items) - len(targets)
        self.targets = pad(targets, (0, spare), value=-1)
        self.wanted, self.sent = map(torch.from_numpy, rows)
        self.counts, self.longest = counts, longest
        # Where nothing counts the sum is 0.
        self.importance, counted = importance, importance or 1.0
        own = float(part.told[_IMPORTANCE].view(torch.float64))
        # One tensor, as each goes to the device by itself.
        self.scalars = torch.tensor([part.event_share, counted, own / counted])
        self.events, self.seed = part.events, part.seed

    @property
    def num_events(self) -> int:
        return self.events

    @property
    def event_share(self) -> Tensor:
        return self.scalars[0]

    @property
    def counted(self) -> Tensor:
        return self.scalars[1]

    @property
    def target_share(self) -> Tensor:
        return self.scalars[2]


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
        self._places, self._placing = np.empty(num_rows, np.int32), Lock()
        # What fills up is a row of the rank that sends it: all must have some.
        self.shape = shape if np.diff(self._bounds).all() else None
        self._room = 0

    def make_room(self, parts: Iterable[Part]) -> None:
        """Let padded steps have room for as many rows of each rank as any of some parts needs, and
        a little more.

        All ranks call this, each with parts of its own, before the steps. Without it none is
        padded.
        """
        most = max(int(np.diff(self._edges(part.wanted)).max()) for part in parts)
        (most,) = self.ranks.agree(most)
        room = most + math.ceil(SPARE_SHARE * most) + SPARE
        self._room = min(room, int(np.diff(self._bounds).max()))

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
        wanted = self._wanted(batch)
        step = self._padded(batch, wanted) or self._plain(batch, wanted)
        if self.device.type == "cuda":
            # By the thread that reads, so that the one that trains has less to do.
            step = step.map(Tensor.pin_memory)
        longest = max(int(lengths.min()), *(int(lengths[part].sum()) for part in parts))
        events = int(lengths.sum())
        seeds = np.random.SeedSequence(self.seed, spawn_key=(*point, self.ranks.rank))
        limit = longest * (1 + self.with_targets)
        # What is padded needs no more rows than there is room for.
        room = min(limit, self.ranks.size * self._room) if self.shape else limit
        return Part(
            batch=batch,
            step=step,
            wanted=wanted,
            told=_told(batch, wanted, step.padded, room),
            limit=limit,
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
        if len(part.told) < _HEAD + part.limit and not self._all_fit(told):
            told = self.ranks.gather(self.whole(part))
        step = self.share(part, told)
        if self.device.type != "cuda":
            return step
        if step.padded:
            return step.map(_pinned)
        return step.map(lambda each: _pinned(each).to(self.device, non_blocking=True))

    def share(self, part: Part, told: Tensor) -> SharedStep:
        """The step on the host, once all are told of all parts, int32 [N * L]: padded where all
        parts are, otherwise by what :meth:`whole` tells."""
        padded, told = self._all_fit(told), told.view(self.ranks.size, -1)
        importance = float(told[:, _IMPORTANCE].contiguous().view(torch.float64).sum())
        wanted = [each[_HEAD : _HEAD + int(each[_WANTED])].long().numpy() for each in told]
        edges = [self._edges(each) for each in wanted]
        rank = self.ranks.rank
        sent = [
            each[edge[rank] : edge[rank + 1]] - self._bounds[rank]
            for each, edge in zip(wanted, edges, strict=True)
        ]
        options: dict[str, Any] = {"importance": importance}
        if self.shape is None or not padded:
            step = self._plain(part.batch, part.wanted) if part.step.padded else part.step
            rows = wanted[rank], np.concatenate(sent)
            counts = [len(each) for each in sent], np.diff(edges[rank]).tolist()
            longest = max(1, int(told[:, _COUNT].max()))
            return SharedStep(step, part, rows, counts=counts, longest=longest, **options)
        starts, ends = self._bounds[:-1], self._bounds[1:]
        blocks = np.split(wanted[rank], edges[rank][1:-1])
        owned = zip(blocks, starts, ends, strict=True)
        filled = [_spread(each, self._room, range(*edge)) for each, *edge in owned]
        own = range(len(self.ranks.rows(self.num_rows)))
        travelling = [_spread(each, self._room, own) for each in sent]
        rows = np.concatenate(filled), np.concatenate(travelling)
        longest = self.shape.targets
        return SharedStep(part.step, part, rows, counts=None, longest=longest, **options)

    def whole(self, part: Part) -> Tensor:
        """What all ranks are told of a part, int32 [L], with room for the rows of any."""
        return _told(part.batch, part.wanted, part.step.padded, part.limit)

    def _all_fit(self, told: Tensor) -> bool:
        return bool(told.view(self.ranks.size, -1)[:, _FITS].all())

    def _wanted(self, batch: Batch) -> np.ndarray:
        """Rows of the table that a batch needs, each once, rising."""
        met = batch.items.numpy()
        if self.with_targets:
            targets = _targets(batch).numpy()
            # Most targets are the items of the next events.
            others = (targets >= 0) & (targets != np.append(met[1:], -1))
            met = np.concatenate([met, targets[others]])
        # Half as long a sort as of 64 bits.
        return each_once(met.astype(np.int32)).astype(np.int64)

    def _placed(self, batch: Batch, wanted: np.ndarray, places: np.ndarray) -> Batch:
        """A batch with the ``places`` of the wanted rows, [K], instead of these."""
        targets = _targets(batch)
        # Parts are made by one thread, and made again by another where they are not padded.
        with self._placing:
            self._places[wanted] = places
            items = torch.from_numpy(self._places[batch.items.numpy()]).long()
            if self.with_targets:
                # Where there is none, any place is found.
                found = torch.from_numpy(self._places[targets.numpy()]).long()
                targets = torch.where(targets >= 0, found, -1)
        return replace(batch, items=items, targets=targets)

    def _plain(self, batch: Batch, wanted: np.ndarray) -> Step:
        """A part as it is."""
        return plain_step(self._placed(batch, wanted, np.arange(len(wanted))))

    def _padded(self, batch: Batch, wanted: np.ndarray) -> Step | None:
        """A part in the shape of a graph, with its rows at the places that they have there."""
        edges = self._edges(wanted)
        if self.shape is None or np.diff(edges).max() > self._room:
            return None
        return padded_step(self._placed(batch, wanted, self._slots(edges)), self.shape)

    def _edges(self, wanted: np.ndarray) -> np.ndarray:
        """Where each rank's begin among rising rows, and where the last ones end, int64 [N + 1]."""
        return np.searchsorted(wanted, self._bounds)

    def _slots(self, edges: np.ndarray) -> np.ndarray:
        """Where wanted rows stand first among those that there is room for, given where each
        rank's begin and the last ones end, int64 [K]; as of :func:`_spread`."""
        blocks = list[np.ndarray]()
        for rank, count in enumerate(np.diff(edges).tolist()):
            each, more = divmod(self._room, count or 1)
            number = np.arange(count)
            blocks.append(rank * self._room + number * each + np.minimum(number, more))
        return np.concatenate(blocks)


def _spread(rows: np.ndarray, room: int, others: range) -> np.ndarray:
    """Rising rows, as often as it takes to make ``room`` of them; some of ``others`` where there
    are none.

    Were one of them all that fills up, its gradient would be the sum of as many, which takes long.

    >>> _spread(np.array([5, 7, 8]), 5, range(9)).tolist()
    [5, 5, 7, 7, 8]
    """
    if not len(rows):
        rows = np.arange(others.start, min(others.stop, others.start + room))
    each, more = divmod(room, len(rows))
    return np.repeat(rows, each + (np.arange(len(rows)) < more))


def _told(batch: Batch, wanted: np.ndarray, fits: bool, room: int) -> Tensor:
    """What all ranks are told of a part; see :class:`Part`."""
    there, weights = _targets(batch) >= 0, batch.target_weights
    count = there.sum()
    importance = count.double() if weights is None else weights[there].double().sum()
    told = torch.zeros(_HEAD + room, dtype=torch.int32)
    told[_COUNT], told[_FITS], told[_WANTED] = count, fits, len(wanted)
    told[_IMPORTANCE] = importance[None].view(torch.int32)
    told[_HEAD : _HEAD + len(wanted)] = torch.from_numpy(wanted[:room])
    return told


def _targets(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.targets


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()
