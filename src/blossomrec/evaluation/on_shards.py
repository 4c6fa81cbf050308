"""Targets ranked by several ranks, each of which has a part of the catalogue.

A rank encodes the histories of its own cases, for which it fetches the vectors of their items.
Their queries then meet the whole catalogue where it is: every rank scores its own items for the
cases of all, counts those that are at least as good as a target, and finds its best ones. The
counts are added up, the lists are merged; no rank has all items, nor all scores of a case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.windows import gather_index
from blossomrec.evaluation import scoring
from blossomrec.evaluation.candidates import Targets, sample_unseen, seen_pieces
from blossomrec.evaluation.scoring import Queries
from blossomrec.evaluation.shared_items import SharedItems
from blossomrec.ranks import Ranks

if TYPE_CHECKING:
    from blossomrec.data.batches import HistoryBatches
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import Cases
    from blossomrec.evaluation.evaluate import RankingOptions
    from blossomrec.models.sequence import SequenceModel

# Cases that are encoded together, if not more are scored together.
CASES = 4_096


@dataclass(frozen=True)
class Ranked:
    """What came of cases, one after another.

    Attributes:
        ranks: of the targets, int64.
        top: the best items, int32 [n, k]; of a sampled ranking [n, 0].
        sampled: how many items were sampled for each case, int64 [n]; of a full ranking [0].
    """

    ranks: np.ndarray
    top: np.ndarray
    sampled: np.ndarray

    @staticmethod
    def join(parts: list[Ranked]) -> Ranked:
        """Of one part of the cases after another."""
        columns = zip(*((each.ranks, each.top, each.sampled) for each in parts), strict=True)
        return Ranked(*map(np.concatenate, columns))


@dataclass(frozen=True)
class RankingTask:
    """Which cases are to be ranked, and how.

    Attributes:
        log, cases, targets, options: as of ``evaluate``.
        batches: gives the histories of some of the cases.
        columns: what is asked for at the last event of each case, by name of a batch's array.
    """

    log: EventLog
    cases: Cases
    targets: Targets
    options: RankingOptions
    batches: Callable[[Cases], HistoryBatches]
    columns: dict[str, np.ndarray]


class ShardedRanking:
    """Ranks cases together with other ranks; all call every method in the same order.

    Args:
        model: which has this rank's part of the item table, in evaluation mode on ``device``.
        ranks: who share it.
        device: where batches go.
        score_elements: scores held at a time, or one row of this part of the catalogue for each
            rank if that is more.
    """

    def __init__(
        self, model: SequenceModel, ranks: Ranks, device: torch.device, score_elements: int
    ):
        self.model, self.ranks, self.device = model, ranks, device
        self._score_elements = score_elements
        self._items = SharedItems(model, ranks, device)
        self._held = model.held_items

    def ranked(self, task: RankingTask) -> Ranked:
        """All cases ranked, on every rank."""
        total = len(task.cases)
        each = -(-total // self.ranks.size)
        first = self.ranks.rank * each
        # As many for every rank: the last case again where there are no more.
        own = np.minimum(np.arange(first, first + each), total - 1)
        parts = [
            self._block(task, cases, queries) for cases, queries in self._query_blocks(task, own)
        ]
        found, there = Ranked.join(parts), min(max(total - first, 0), each)
        num_targets = int(task.targets.counts[own[:there]].sum())
        mine = found.ranks[:num_targets], found.top[:there], found.sampled[:there]
        return Ranked.join([Ranked(*each) for each in self.ranks.gathered(mine)])

    def _query_blocks(
        self, task: RankingTask, own: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Queries]]:
        """Numbers of cases that are scored together, as many on every rank, and their queries."""
        rows = self._rows_of_each(len(own))
        self._rows = rows * self.ranks.size
        encoded = max(rows, CASES // rows * rows)
        for start in range(0, len(own), encoded):
            some = own[start : start + encoded]
            queries = self._queries(task, some)
            for row in range(0, len(some), rows):
                yield some[row : row + rows], queries.part(row, row + rows)

    def _rows_of_each(self, most: int) -> int:
        """Cases of every rank in a block."""
        # The first rank has no fewer items than others.
        widest = len(self.ranks.rows(self._items.num_rows, 0))
        return max(1, min(self._score_elements // widest // self.ranks.size, most))

    def _queries(self, task: RankingTask, some: np.ndarray) -> Queries:
        """Queries of some own cases; ranks need not have as many batches."""
        batches, parts = task.batches(task.cases.take(some)), list[Queries]()
        ahead = iter(batches)
        for _ in range(self.ranks.agree(len(batches))[0]):
            found = next(ahead, None)
            if found is None:
                self._items.queries(None)
                continue
            part, batch = found
            for name, values in task.columns.items():
                getattr(batch, name)[batch.last_rows] = torch.from_numpy(values[some[part]])
            parts.append(self._items.queries(batch.to(self.device)))
        return Queries.join(parts)

    def _block(self, task: RankingTask, some: np.ndarray, queries: Queries) -> Ranked:
        """Some own cases ranked; others rank theirs."""
        log, users, edges = task.log, task.cases.users[some], task.targets.offsets
        counts = edges[some + 1] - edges[some]
        items = task.targets.items[gather_index(edges[some], counts)]
        targets = _Pairs(np.repeat(np.arange(len(some)), counts), items)
        with scoring.full_precision(self.device):
            scores = self._scores(queries)
        if task.options.ranking == "full":
            seen = _Pairs.none()
            if task.options.filter_seen:
                seen = _Pairs.join(seen_pieces(log, users, task.cases.history_end[some]))
            found = self._rank_all(scores, targets, seen, task.options.ks[-1])
            return Ranked(*found, np.empty(0, np.int64))
        unseen = sample_unseen(log, users, task.options.seed)
        found = self._rank_sampled(scores, targets, unseen)
        return Ranked(found, np.empty((len(some), 0), np.int32), (unseen >= 0).sum(1))

    def _scores(self, queries: Queries) -> Tensor:
        """Scores of the own items for the cases of all ranks, [N * b, width]."""
        states = self.ranks.gather(queries.states)
        block = self._buffer.fill(Queries(states))
        if queries.own is not None:
            self._mix(block, queries)
        return block

    @cached_property
    def _buffer(self) -> scoring.ScoreBlock:
        """Room for the scores of the first and largest block, which is used again for others."""
        shard = _Shard(self.model, len(self._held))
        width = -(-shard.num_items // scoring.GROUP) * scoring.GROUP
        tiles = -(-self._rows // scoring.TILE_ROWS)
        elements = tiles * scoring.TILE_ROWS * width
        return scoring.ScoreBlock(shard, self._rows, device=self.device, score_elements=elements)

    def _mix(self, block: Tensor, queries: Queries) -> None:
        """Put the scores of the items of the histories in their place."""
        own = queries.own
        assert own is not None
        pairs, mine = self._all_pairs(own.history, own.items, len(block))
        found = self._at(block, pairs)
        lse = self.ranks.gather(block.logsumexp(1)[None]).logsumexp(0)
        first = self.ranks.rank * len(queries)
        mixed = self.model.own_scores(
            queries.states, lse[first : first + len(queries)], own, found[mine]
        )
        mixed = torch.cat(self.ranks.gather_pieces(mixed))
        here = self._here(pairs)
        block[self._local(pairs, here)] = mixed[here]

    def _rank_all(
        self, block: Tensor, targets: _Pairs, seen: _Pairs, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of the targets of own cases among all items, and their k best items."""
        pairs, mine = self._all_pairs(*targets.on(self.device), len(block))
        own = self._at(block, pairs)
        left_out, _ = self._all_pairs(*seen.on(self.device), len(block))
        block[self._local(left_out, self._here(left_out))] = -torch.inf
        here = self._here(pairs)
        places = self._local(pairs, here)
        block[places] = own[here]
        top = self._top(block, k)
        # From here on no target is counted, neither against itself nor against another of its case.
        block[places] = -torch.inf
        ranks = self.ranks.sum_(scoring.count_at_least(block, pairs[:, 0], own))
        return ranks[mine].cpu().numpy(), top.int().cpu().numpy()

    def _top(self, block: Tensor, k: int) -> Tensor:
        """The k best items of the own cases, int64 [b, k]."""
        size = self.ranks.size
        rows, scores = scoring.best(block, k)
        rows = torch.where(rows < 0, 0, rows + self._held.start)
        each = [len(block) // size] * size
        found = [self.ranks.exchange(one, each, each) for one in (rows, scores)]
        rows, scores = (one.view(size, each[0], k).transpose(0, 1).flatten(1) for one in found)
        return scoring.in_order(rows, scores)[0][:, :k]

    def _rank_sampled(self, block: Tensor, targets: _Pairs, unseen: np.ndarray) -> np.ndarray:
        """Ranks of the targets of own cases among the items sampled for each user."""
        pairs, mine = self._all_pairs(*targets.on(self.device), len(block))
        own = self._at(block, pairs)[mine]
        sampled = torch.from_numpy(unseen).to(self.device)
        rows = torch.arange(len(sampled), device=self.device).repeat_interleave(sampled.shape[1])
        others, these = self._all_pairs(rows, sampled.flatten().clamp(min=0), len(block))
        candidates = self._at(block, others)[these].view(sampled.shape)
        candidates = candidates.masked_fill(sampled < 0, -torch.inf)
        scoring.refuse_nan(own)
        scoring.refuse_nan(candidates)
        rows = torch.from_numpy(targets.rows).to(self.device)
        return scoring.count_at_least(candidates, rows, own).cpu().numpy()

    def _all_pairs(self, rows: Tensor, items: Tensor, total: int) -> tuple[Tensor, slice]:
        """Rows of a block of ``total`` and items of all ranks, int64 [P, 2], and which are own."""
        before = total // self.ranks.size * self.ranks.rank
        pieces = self.ranks.gather_pieces(torch.stack((rows + before, items), 1))
        first = sum(map(len, pieces[: self.ranks.rank]))
        return torch.cat(pieces), slice(first, first + len(rows))

    def _here(self, pairs: Tensor) -> Tensor:
        """Which items this rank has, bool [P]."""
        return (pairs[:, 1] >= self._held.start) & (pairs[:, 1] < self._held.stop)

    def _local(self, pairs: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """Where those items that are here stand in the block."""
        rows, items = pairs[here].unbind(1)
        return rows, items - self._held.start

    def _at(self, block: Tensor, pairs: Tensor) -> Tensor:
        """Scores of the items of pairs, wherever they are, [P]."""
        here = self._here(pairs)
        found = block.new_zeros(len(pairs))
        found[here] = block[self._local(pairs, here)]
        return self.ranks.sum_(found)


@dataclass(frozen=True)
class _Pairs:
    """Rows of a block of cases and items, both int64 [P]."""

    rows: np.ndarray
    items: np.ndarray

    @staticmethod
    def none() -> _Pairs:
        return _Pairs(np.empty(0, np.int64), np.empty(0, np.int64))

    @staticmethod
    def join(pieces: Iterator[tuple[np.ndarray, np.ndarray]]) -> _Pairs:
        rows, items = zip(*pieces, strict=True)
        return _Pairs(np.concatenate(rows), np.concatenate(items))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, items = (torch.from_numpy(each.astype(np.int64)) for each in (self.rows, self.items))
        return rows.to(device), items.to(device)


@dataclass(frozen=True)
class _Shard:
    """A part of a catalogue as a catalogue of its own, for a block of scores."""

    model: SequenceModel
    num_items: int

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        return self.model.scores(queries, start, stop)
