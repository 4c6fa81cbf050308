"""Which part of a batch a rank has, and which rows of the item table it needs for that."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.batch import Batch
from blossomrec.data.windows import boundaries, gather_index
from blossomrec.ranks import Ranks
from blossomrec.training.objective import Step


@dataclass(frozen=True)
class Traffic:
    """Rows of the item table on their way from the ranks that have them to those that need them.

    All ranks know it before the step, since all know the whole batch: nobody asks, nobody waits.

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
    """Divides batches among ranks, as evenly as whole histories can be.

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

    def __call__(self, batch: Batch, point: tuple[int, int]) -> Share:
        """This rank's part of a batch.

        Args:
            point: epoch and step.
        """
        assert batch.targets is not None
        parts = divided(batch.cu_seqlens.diff().numpy(), self.ranks.size)
        taken = [_taken(batch, histories) for histories in parts]
        wanted = [self._wanted(each) for each in taken]
        mine = taken[self.ranks.rank]
        counts = [int((_targets(each) >= 0).sum()) for each in taken]
        weights = batch.target_weights
        there = batch.targets >= 0
        whole = there.sum() if weights is None else weights[there].double().sum()
        own = len(parts[self.ranks.rank]) > 0
        seeds = np.random.SeedSequence(self.seed, spawn_key=(*point, self.ranks.rank))
        return Share(
            batch=self._by_places(mine, wanted[self.ranks.rank]),
            targets=_targets(mine),
            traffic=self._traffic(wanted),
            longest=max(1, *counts),
            event_share=len(mine.items) / len(batch.items) if own else 0.0,
            events=len(batch.items),
            importance=float(whole),
            seed=int(seeds.generate_state(1, np.uint32)[0]),
        )

    def steps(self, shares: Iterator[Share], device: torch.device) -> Iterator[SharedStep]:
        """Move parts to the device without waiting for it."""
        for share in shares:
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
            yield SharedStep(moved, rows, count, distil_rows)

    def _wanted(self, batch: Batch) -> np.ndarray:
        """Rows of the table that a part needs, rising."""
        items = batch.items.numpy()
        if self.with_targets:
            targets = _targets(batch).numpy()
            items = np.concatenate([items, targets[targets >= 0]])
        return np.unique(items)

    def _by_places(self, batch: Batch, wanted: np.ndarray) -> Batch:
        """The batch with rows of the table by their places among the wanted ones."""

        def places(rows: Tensor) -> Tensor:
            return torch.from_numpy(np.searchsorted(wanted, rows.numpy()))

        targets = _targets(batch)
        if self.with_targets:
            targets = places(targets).where(targets >= 0, -1)
        return replace(batch, items=places(batch.items), targets=targets)

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


def _taken(batch: Batch, histories: np.ndarray) -> Batch:
    """Some histories of a batch; where there are none the shortest one, without targets, so that
    every rank has something to encode."""
    edges = batch.cu_seqlens.numpy().astype(np.int64)
    lengths, idle = np.diff(edges), not len(histories)
    if idle:
        histories = np.array([np.argmin(lengths)])
    rows = torch.from_numpy(gather_index(edges[histories], lengths[histories]))
    cu_seqlens = torch.from_numpy(boundaries(lengths[histories]).astype(np.int32))
    taken = batch.take(rows, cu_seqlens, int(lengths[histories].max()))
    return replace(taken, targets=torch.full_like(taken.items, -1)) if idle else taken


def _targets(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.targets


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
