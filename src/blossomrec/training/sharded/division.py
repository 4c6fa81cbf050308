"""Which part of a batch a rank has, and which rows of the item table it needs for that."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.batch import Batch
from blossomrec.ranks import Ranks
from blossomrec.training.objective import Step


@dataclass(frozen=True)
class Traffic:
    """Rows of the item table on their way from the ranks that have them to those that need them.

    All ranks know it before the step, since each has told all others what it wants meanwhile.

    Attributes:
        wanted: rows of the whole table that this rank needs, int64 [K], rising, each once.
        sent: those of its own rows that it sends, from 0, int64 [S], rank after rank.
        sent_counts, received_counts: how many go to and come from each rank.
    """

    wanted: Tensor
    sent: Tensor
    sent_counts: list[int]
    received_counts: list[int]


@dataclass(frozen=True)
class Share:
    """A rank's part of a batch, on the host.

    Attributes:
        batch: its histories; items, and targets where they are wanted, by their places among the
            wanted rows.
        targets: the same by rows of the catalogue, int64 [T].
        traffic: the rows.
        longest: the largest number of targets of a rank, at least 1.
        event_share: of the events of the whole batch that are its own; 0 where it has none.
        events, importance: of the whole batch, as of :class:`Step`.
        seed: of what is drawn at this step and this rank.
    """

    batch: Batch
    targets: Tensor
    traffic: Traffic
    longest: int
    event_share: float
    events: int
    importance: float
    seed: int


@dataclass(frozen=True)
class Part:
    """A rank's part of a batch as it was read.

    Attributes:
        batch: its histories; items, and targets where their vectors are needed, by their places
            among the wanted rows.
        targets: by rows of the catalogue, int64 [T].
        told: what all ranks are told of it, int64 [L], the same L everywhere: how many targets
            there are, how much these count, K, and the wanted rows.
        event_share, events, seed: as of :class:`Share`.
    """

    batch: Batch
    targets: Tensor
    told: Tensor
    event_share: float
    events: int
    seed: int


class SharedStep(Step):
    """A step of all ranks, of which this one has a part.

    Attributes:
        share: the part, whose tensors are on the device.
        items: vectors of the catalogue's items that this rank has; set when there are.
    """

    items: Tensor

    def __init__(self, share: Share, rows: Tensor | None, count: int, distil_rows: Tensor | None):
        super().__init__(
            share.batch, rows, count, importance=share.importance, distil_rows=distil_rows
        )
        self.share = share

    @property
    def num_events(self) -> int:
        return self.share.events


class Division:
    """Divides batches among ranks, as evenly as whole histories can be; each reads its part alone.

    Args:
        ranks: who gets a part.
        num_rows: of the item table.
        seed: of the training.
        with_targets: whether the vectors of the targets are needed, too.
    """

    def __init__(self, ranks: Ranks, num_rows: int, seed: int, *, with_targets: bool):
        self.ranks, self.num_rows, self.seed = ranks, num_rows, seed
        self.with_targets = with_targets
        starts = [ranks.rows(num_rows, rank).start for rank in range(ranks.size)]
        self._bounds = np.array([*starts, num_rows])

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
        longest = max(int(lengths.min()), *(int(lengths[part].sum()) for part in parts))
        room = longest * (2 if self.with_targets else 1)
        events = int(lengths.sum())
        seeds = np.random.SeedSequence(self.seed, spawn_key=(*point, self.ranks.rank))
        return Part(
            batch=by_places,
            targets=_targets(batch),
            told=_told(batch, wanted, room),
            event_share=0.0 if idle else len(batch.items) / events,
            events=events,
            seed=int(seeds.generate_state(1, np.uint32)[0]),
        )

    def steps(self, parts: Iterator[Part], device: torch.device) -> Iterator[SharedStep]:
        """Steps on the device, without waiting for it; the ranks tell each other of a part while
        the step before is taken."""
        waiting: tuple[Part, Callable[[], Tensor]] | None = None
        for part in parts:
            following = part, self.ranks.gather_later(part.told)
            if waiting is not None:
                yield self._step(waiting[0], waiting[1](), device)
            waiting = following
        if waiting is not None:
            yield self._step(waiting[0], waiting[1](), device)

    def share(self, part: Part, told: Tensor) -> Share:
        """What the rank has of a step, once all are told of all parts, int64 [N * L]."""
        told = told.view(self.ranks.size, -1)
        counts, importance = told[:, 0].tolist(), told[:, 1].contiguous().view(torch.float64)
        wanted = [each[3 : 3 + int(each[2])].numpy() for each in told]
        return Share(
            batch=part.batch,
            targets=part.targets,
            traffic=self._traffic(wanted),
            longest=max(1, *counts),
            importance=float(importance.sum()),
            event_share=part.event_share,
            events=part.events,
            seed=part.seed,
        )

    def _step(self, part: Part, told: Tensor, device: torch.device) -> SharedStep:
        share = self.share(part, told)
        rows = (share.targets >= 0).nonzero()[:, 0]
        tokens, count = len(share.targets), len(rows)
        traffic = share.traffic
        moved = replace(
            share,
            batch=share.batch.map(lambda each: _moved(each, device)),
            targets=_moved(share.targets, device),
            traffic=replace(
                traffic,
                wanted=_moved(traffic.wanted, device),
                sent=_moved(traffic.sent, device),
            ),
        )
        # Where nothing counts the selector is distilled at every event: it has to be somewhere.
        distil_rows = None if count else torch.arange(tokens, device=device)
        rows = None if count == tokens else _moved(rows, device)
        return SharedStep(moved, rows, count, distil_rows)

    def _by_places(self, batch: Batch) -> tuple[Batch, np.ndarray]:
        """The batch with rows of the table by their places among those it needs; and these, each
        once, rising."""
        met, targets, count = batch.items.numpy(), _targets(batch), len(batch.items)
        there = targets >= 0
        if self.with_targets:
            met = np.concatenate([met, targets[there].numpy()])
        wanted, places = np.unique(met, return_inverse=True)
        if self.with_targets:
            targets = torch.full_like(targets, -1)
            targets[there] = torch.from_numpy(places[count:])
        return replace(batch, items=torch.from_numpy(places[:count]), targets=targets), wanted

    def _traffic(self, wanted: list[np.ndarray]) -> Traffic:
        rank, edges = self.ranks.rank, [np.searchsorted(each, self._bounds) for each in wanted]
        sent = [
            each[edge[rank] : edge[rank + 1]] - self._bounds[rank]
            for each, edge in zip(wanted, edges, strict=True)
        ]
        return Traffic(
            wanted=torch.from_numpy(wanted[rank]),
            sent=torch.from_numpy(np.concatenate(sent)),
            sent_counts=[len(each) for each in sent],
            received_counts=np.diff(edges[rank]).tolist(),
        )


def divided(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Numbers of the pieces, rising, of each of ``size`` parts of about the same total length.

    The longest pieces are given first, each to the part that has least.

    >>> [each.tolist() for each in divided(np.array([5, 1, 2, 3]), 2)]
    [[0, 1], [2, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(size)]
    least = [(0, part) for part in range(size)]
    for piece in np.argsort(-lengths, kind="stable").tolist():
        total, part = heapq.heappop(least)
        parts[part].append(piece)
        heapq.heappush(least, (total + int(lengths[piece]), part))
    return [np.array(sorted(each), dtype=np.int64) for each in parts]


def _told(batch: Batch, wanted: np.ndarray, room: int) -> Tensor:
    """What all ranks are told of a part; see :class:`Part`."""
    there, weights = _targets(batch) >= 0, batch.target_weights
    count = there.sum()
    importance = count.double() if weights is None else weights[there].double().sum()
    told = torch.zeros(3 + room, dtype=torch.int64)
    told[0], told[1], told[2] = count, importance.view(torch.int64), len(wanted)
    told[3 : 3 + len(wanted)] = torch.from_numpy(wanted)
    return told


def _targets(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.targets


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
