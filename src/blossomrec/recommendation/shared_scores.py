"""Scores of a rank's part of the catalogue for the histories of all ranks, as one process has them.

A score depends on the shape of the call that makes it, in its last digits. Calls here have those of
a process alone: tiles of items have the same borders, for which a rank gets what its last tile
lacks from the ranks behind it, and histories stand in the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blossomrec.evaluation import scoring
from blossomrec.evaluation.scoring import GROUP, Queries
from blossomrec.evaluation.shared_items import SharedItems
from blossomrec.ranks import Ranks

if TYPE_CHECKING:
    from blossomrec.models.sequence import SequenceModel


class Pairs:
    """Histories of all ranks, one rank's after another, and items, each int64 [P].

    Args:
        ranks: all of which give theirs.
        sizes: how many histories each rank has.
        histories, items: of this rank, histories counted from its first one.

    Attributes:
        histories, items: of all ranks.
        own: which of them this rank gave.
    """

    def __init__(self, ranks: Ranks, sizes: Sequence[int], histories: Tensor, items: Tensor):
        pieces = ranks.gather_pieces(torch.stack((histories + sum(sizes[: ranks.rank]), items), 1))
        self.histories, self.items = torch.cat(pieces).unbind(1)
        first = sum(map(len, pieces[: ranks.rank]))
        self.own = slice(first, first + len(histories))

    def within(self, items: range) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Which of them are of some items, bool [P], and those as places in a block of scores."""
        here = (self.items >= items.start) & (self.items < items.stop)
        return here, (self.histories[here], self.items[here] - items.start)


class SharedScores:
    """Scores of the tiles of the catalogue whose first items a rank has.

    Args:
        model: which has this rank's part of the item table, in evaluation mode on its device.
        shared: its items.
        ranks: who share them, and all make one of these.
        histories: of the largest batch of a rank.
        chosen: the only item rows that may be recommended, int64, rising; None for all.
        boosts: float32 [I], what is added to the scores; None for nothing.

    Attributes:
        items: whose scores it has.
        rows: histories of each rank that are scored together, at most.
    """

    def __init__(
        self,
        model: SequenceModel,
        shared: SharedItems,
        ranks: Ranks,
        histories: int,
        *,
        chosen: np.ndarray | None = None,
        boosts: np.ndarray | None = None,
    ):
        self._model, self._ranks = model, ranks
        self._device = model.item_embeddings.weight.device
        alone = scoring.ScoreBlock(
            model,
            histories,
            device=self._device,
            score_elements=scoring.SCORE_ELEMENTS,
            items=chosen,
        )
        self.rows, self._tile_rows = alone.rows, alone.tile_rows
        held, tile, total = model.held_items, scoring.TILE_ITEMS, model.num_items
        first, stop = (min(-(-edge // tile) * tile, total) for edge in (held.start, held.stop))
        self.items = range(first, stop)
        self._starts = [start for start in alone.starts if start in self.items]
        # What its last tile has of items that ranks behind it hold, if anything.
        rest = shared.fetch(torch.arange(max(first, held.stop), stop, device=self._device))
        self._split = held.stop - held.stop % tile if len(rest) else total
        kept = shared.vectors[max(0, self._split - held.start) : len(held)]
        self._last = torch.cat((kept, rest))
        self._left_out = None if chosen is None else left_out(chosen, self.items).to(self._device)
        self._boosts = None
        if boosts is not None:
            own = torch.from_numpy(boosts[self.items.start : self.items.stop])
            self._boosts = own.to(self._device)

    def of(self, pieces: Sequence[Tensor], queries: Queries, seen: Pairs) -> Tensor:
        """Scores of the own items for the histories of all ranks, [n, width], width in groups.

        They are those of one buffer, which the next call fills again.

        Args:
            pieces: states of each rank, [n, D].
            queries: of this one.
            seen: what must not be recommended.
        """
        block = self._buffer[: sum(map(len, pieces))]
        lse = self._filled(block, pieces)
        if scoring.mixes_own(self._model):
            self._mix(block, [len(each) for each in pieces], queries, lse)
        if self._left_out is not None:
            block[:, : len(self.items)].masked_fill_(self._left_out, -torch.inf)
        if self._boosts is not None:
            block[:, : len(self.items)] += self._boosts
        block[seen.within(self.items)[1]] = -torch.inf
        return block

    @cached_property
    def _buffer(self) -> Tensor:
        width = max(1, -(-len(self.items) // GROUP)) * GROUP
        rows = self.rows * self._ranks.size
        return torch.full((rows, width), -torch.inf, device=self._device)

    def _filled(self, block: Tensor, pieces: Sequence[Tensor]) -> Tensor:
        """Put scores into a block; logarithms of their summed exponentials by tile, [tiles, n]."""
        lowest, mixes = torch.finfo(block.dtype).min, scoring.mixes_own(self._model)
        sums = block.new_empty(len(self._starts) if mixes else 0, len(block))
        first = 0
        for piece in pieces:
            for row in range(0, len(piece), self._tile_rows):
                part = piece[row : row + self._tile_rows]
                rows = slice(first + row, first + row + len(part))
                for number, start in enumerate(self._starts):
                    scores = self._tile(part, start)
                    place = start - self.items.start
                    target = block[rows, place : place + scores.shape[1]]
                    torch.clamp(scores.float(), min=lowest, out=target)
                    if mixes:
                        sums[number, rows] = target.logsumexp(1)
            first += len(piece)
        return sums

    def _tile(self, states: Tensor, start: int) -> Tensor:
        """Scores of the items of a tile, [n, items]."""
        stop = min(start + scoring.TILE_ITEMS, self.items.stop)
        if start == self._split:
            with self._model.on_rows(self._last):
                return self._model.scores(states, 0, stop - start)
        held = self._model.held_items.start
        return self._model.scores(states, start - held, stop - held)

    def _mix(self, block: Tensor, sizes: Sequence[int], queries: Queries, sums: Tensor) -> None:
        """Put the scores of the items of the histories in their place."""
        own, first = queries.own, sum(sizes[: self._ranks.rank])
        nothing = torch.empty(0, dtype=torch.int64, device=self._device)
        given = (nothing, nothing) if own is None else (own.history, own.items)
        pairs = Pairs(self._ranks, sizes, *given)
        here, places = pairs.within(self.items)
        found = block.new_zeros(len(here))
        found[here] = block[places]
        found = self._ranks.sum_(found)[pairs.own]
        sums = torch.cat(self._ranks.gather_pieces(sums))[:, first : first + len(queries)]
        if own is not None:
            found = self._model.own_scores(queries.states, self._added(sums), own, found)
        block[places] = torch.cat(self._ranks.gather_pieces(found))[here]

    def _added(self, sums: Tensor) -> Tensor:
        """Logarithms of the sums over all tiles, [n], added in the order of one process."""
        lse = sums.new_full((sums.shape[1],), -torch.inf)
        for row in range(0, len(lse), self._tile_rows):
            part = lse[row : row + self._tile_rows]
            for tile in sums[:, row : row + self._tile_rows].contiguous():
                torch.logaddexp(part, tile, out=part)
        return lse


def left_out(chosen: np.ndarray, items: range) -> Tensor:
    """Which of some items are not among those chosen, item rows, bool [len(items)]."""
    outside = torch.ones(len(items), dtype=torch.bool)
    here = chosen[(chosen >= items.start) & (chosen < items.stop)]
    outside[torch.from_numpy(here - items.start)] = False
    return outside
