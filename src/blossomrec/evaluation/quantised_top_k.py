"""The best items by products of vectors on a processor, of which a copy in 8 bits is read.

It tells which items may be among the best; these are scored in float32 by the same call as ever, in
the same tiles of queries, and stand in the same order. The matrix library sums the products of a
tile in an order that may depend on where an item stands in it: that it does not is looked at first,
for every shape of a call, and where it does all items are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from blossomrec.evaluation import scoring
from blossomrec.evaluation.scoring import Pairs
from blossomrec.models.fused.quantised_items import KeptCopy, Offsets, QuantisedItems

# Whole tiles of items from which on it pays.
LEAST_TILES = 4
# Items that are scored by a call, always as many.
PART = 512


class QuantisedTopK:
    """The k items whose vectors have the largest products with a query, equal ones by item row.

    Args:
        scorer: whose ``score_vectors`` they are.
        block: of the same scorer, which tells the tiles, and scores all items where that is needed.
        copy: of the vectors of all whole tiles.
        kept: where the copy is from.
    """

    def __init__(
        self, scorer: Any, block: scoring.ScoreBlock, copy: QuantisedItems, kept: KeptCopy
    ):
        self._scorer, self._block, self._copy, self._kept = scorer, block, copy, kept
        self._vectors = scorer.score_vectors().detach()

    @torch.no_grad()
    def of(
        self, states: Tensor, k: int, offsets: Sequence[Offsets | None], seen: Pairs
    ) -> tuple[Tensor, Tensor]:
        """Item rows int64 [n, k], best first, and their scores float32 [n, k].

        -1 and -inf stand where fewer than k items are left.

        Args:
            states: of the queries, float32 [n, D].
            offsets: of each query, for all items; bounded.
            seen: items that some of the queries must not have.

        Raises:
            TrainingError: a score is not a number.
        """
        states, height = states.float(), self._block.tile_rows
        step = max(1, self._copy.together(k) // height) * height
        ordered = _Ordered(seen, len(states))
        rows = torch.empty(len(states), k, dtype=torch.int64)
        scores = torch.empty(len(states), k)
        for start in range(0, len(states), step):
            stop = min(start + step, len(states))
            part = states[start:stop]
            found, counts = self._copy.candidates(
                part, k, offsets[start:stop], ordered.starts_of(start, stop)
            )
            for first in range(0, len(part), height):
                some = slice(first, min(first + height, len(part)))
                tile = _Tile(
                    part[some],
                    offsets[start + some.start : start + some.stop],
                    ordered.part(start + some.start, start + some.stop),
                )
                best = self._best(tile, k, found[some], counts[some])
                rows[start:][some], scores[start:][some] = best
        return rows, scores

    def _best(self, tile: _Tile, k: int, found: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        failed = int((counts < 0).sum())
        self._kept.tell(self._copy, len(counts), failed)
        if failed or not _places_do_not_matter(self._vectors, len(tile.states)):
            return tile.best(self._block.fill(scoring.Queries(tile.states)), k, 0)
        items = found[:, : max(1, int(counts.max()))].long()
        there = torch.arange(items.shape[1]) < counts[:, None]
        items = items.masked_fill_(~there, 0)
        scores = self._scores(tile, items, there)
        rest = self._rest(tile, k)
        if rest is not None:
            items, scores = (torch.cat(each, 1) for each in zip((items, scores), rest, strict=True))
        missing = (0, max(0, k - items.shape[1]))
        items = torch.nn.functional.pad(items, missing)
        scores = torch.nn.functional.pad(scores, missing, value=-torch.inf)
        rows, scores = scoring.in_order(items, scores)
        return rows[:, :k], scores[:, :k]

    def _scores(self, tile: _Tile, items: Tensor, there: Tensor) -> Tensor:
        """Scores of items, [n, c]; -inf where ``there`` is not true."""
        wanted, places = torch.unique(items[there], return_inverse=True)
        padded = torch.nn.functional.pad(wanted, (0, -len(wanted) % PART))
        products = [
            tile.states @ self._vectors.index_select(0, part).T for part in padded.split(PART)
        ]
        scores = torch.full(items.shape, -torch.inf)
        if products:
            rows = there.nonzero()[:, 0]
            scores[there] = torch.cat(products, 1)[rows, places]
            tile.add(scores, items)
        return scores

    def _rest(self, tile: _Tile, k: int) -> tuple[Tensor, Tensor] | None:
        """The best of the items of the last tile, which is not a whole one; None without it."""
        start, stop = self._copy.num_items, self._scorer.num_items
        if start == stop or start not in self._block.starts:
            return None
        scores = self._scorer.scores(tile.states, start, stop).float()
        scores = scores.clamp(min=torch.finfo(scores.dtype).min)
        width = -(stop - start) % scoring.GROUP
        block = torch.nn.functional.pad(scores, (0, width), value=-torch.inf)
        rows, best = tile.best(block, min(k, stop - start), start)
        return rows.clamp(min=0), best


def quantised_for(
    scorer: Any, block: scoring.ScoreBlock, k: int, queries: int
) -> QuantisedTopK | None:
    """Finds the best items of a scorer from a copy in 8 bits; None where that does not pay.

    Args:
        block: of the scorer.
        queries: for how many they are looked for now.
    """
    if k > scoring.LARGEST_K or 2 * len(block.starts) < scorer.num_items // scoring.TILE_ITEMS:
        return None
    vectors = _whole_tiles(scorer)
    copy = None if vectors is None else scorer.quantised.of(vectors, queries)
    return None if copy is None else QuantisedTopK(scorer, block, copy, scorer.quantised)


@torch.no_grad()
def prepare(scorer: Any) -> None:
    """Do for a scorer that will be asked often what a single query would have to wait for."""
    vectors = _whole_tiles(scorer)
    if vectors is not None and scorer.quantised.make(vectors) is not None:
        _places_do_not_matter(vectors, 1)


def _whole_tiles(scorer: Any) -> Tensor | None:
    """The vectors of all whole tiles of items; None where no copy of them pays."""
    tiles = scorer.num_items // scoring.TILE_ITEMS
    if tiles < LEAST_TILES or not hasattr(scorer, "quantised") or scoring.mixes_own(scorer):
        return None
    vectors = scorer.score_vectors()
    if vectors is None or vectors.device.type != "cpu" or not vectors.is_contiguous():
        return None
    return vectors[: tiles * scoring.TILE_ITEMS]


class _Tile:
    """Queries that are scored together, and what is to be added and left out."""

    def __init__(self, states: Tensor, offsets: Sequence[Offsets | None], seen: Pairs):
        self.states, self._offsets, self._seen = states, offsets, seen

    def best(self, block: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
        """As ``scoring.best``, of scores of items from ``start`` on, which are changed."""
        for scores, offset in zip(block, self._offsets, strict=True):
            if offset is not None:
                known = offset.values[start : start + len(scores)]
                left_out = known == -torch.inf
                scores[: len(known)].add_(known).masked_fill_(left_out, -torch.inf)
        queries, items = self._seen
        here = (items >= start) & (items < start + block.shape[1])
        block[queries[here], items[here] - start] = -torch.inf
        rows, scores = scoring.best(block, k)
        return torch.where(rows < 0, rows, rows + start), scores

    def add(self, scores: Tensor, items: Tensor) -> None:
        """Add the offsets to scores of items, both [n, c]."""
        shared = self._offsets[0]
        if all(offset is shared for offset in self._offsets):
            if shared is not None:
                scores += shared.values[items]
            return
        for row, own, offset in zip(scores, items, self._offsets, strict=True):
            if offset is not None:
                row += offset.values[own]


class _Ordered:
    """Pairs by query, then by item."""

    def __init__(self, pairs: Pairs, queries: int):
        histories, items = pairs
        largest = int(items.max()) + 1 if len(items) else 1
        keys = (histories * largest + items).sort().values
        self._histories, self._items = keys // largest, keys % largest
        self._starts = torch.searchsorted(self._histories, torch.arange(queries + 1))

    def starts_of(self, start: int, stop: int) -> Pairs:
        """As ``QuantisedItems.candidates`` is told them, of the queries start .. stop-1."""
        return self._starts[start : stop + 1], self._items

    def part(self, start: int, stop: int) -> Pairs:
        """Of the queries start .. stop-1."""
        first, end = self._starts[[start, stop]].tolist()
        return self._histories[first:end] - start, self._items[first:end]


def _places_do_not_matter(vectors: Tensor, queries: int) -> bool:
    """Whether so many queries together have scores that do not depend on where an item stands."""
    alignment, threads = vectors.data_ptr() % 64, torch.get_num_threads()
    return _same_anywhere(queries, vectors.shape[1], alignment, threads)


@cache
def _same_anywhere(queries: int, size: int, alignment: int, threads: int) -> bool:
    """Whether a tile's scores are those of parts of it, bit for bit, wherever an item stands.

    Args:
        alignment: of the vectors, in bytes.
        threads: of the matrix library.
    """
    generator = torch.Generator().manual_seed(0)
    room = torch.randn(scoring.TILE_ITEMS * size + 16, generator=generator)
    first = (alignment - room.data_ptr()) % 64 // room.element_size()
    tile = room[first:][: scoring.TILE_ITEMS * size].view(-1, size)
    states = torch.randn(queries, size, generator=generator)
    order = torch.randperm(len(tile), generator=generator)
    parts = [states @ tile.index_select(0, part).T for part in order.split(PART)]
    return torch.equal((states @ tile.T)[:, order], torch.cat(parts, 1))
