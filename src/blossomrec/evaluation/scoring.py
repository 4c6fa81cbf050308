"""Scores of a few histories against the whole catalogue, and the best items among them.

A block of histories is scored tile by tile into one buffer that is used again for the next block,
so memory is ``score_elements`` numbers whatever the catalogue and the number of histories. The
tiles have the same shape and the same borders for every batch size: a score, and with it a rank,
never depends on which batch its history came in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blossomrec.errors import ConfigError, DataError, TrainingError
from blossomrec.models.own_history.items import OwnItems

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch


TILE_ROWS = 32
TILE_ITEMS = 16_384
# The best items are looked for in groups of neighbouring items; divides TILE_ITEMS.
GROUP = 64
# Largest intermediate while counting and picking, in numbers.
WORK_ELEMENTS = 1 << 21
SCORE_ELEMENTS = 1 << 26
# Longer lists are found by all scores.
LARGEST_K = 1_024
# Rows of queries and item rows, int64 [N].
Pairs = tuple[Tensor, Tensor]


def mixes_own(scorer: Any) -> bool:
    """Whether a scorer mixes the items of the history into its scores of the catalogue."""
    return getattr(scorer, "own_history", None) is not None


@dataclass(frozen=True)
class Queries:
    """What is to be known of B histories to score items for them.

    Attributes:
        states: [B, ...], what a scorer's ``queries`` gave.
        own: the items of the histories, where the scorer tells them apart; see
            ``SequenceModel.own_scores``.
    """

    states: Tensor
    own: OwnItems | None = None

    @staticmethod
    def of(scorer: Any, batch: Batch) -> Queries:
        """Of the histories of a batch."""
        states = as_queries(scorer.queries(batch))
        return Queries(states, scorer.history_items(batch) if mixes_own(scorer) else None)

    @staticmethod
    def join(parts: Sequence[Queries]) -> Queries:
        """Of histories one part after another."""
        own = [each.own for each in parts if each.own is not None]
        joined = OwnItems.join(own) if own else None
        return Queries(torch.cat([each.states for each in parts]), joined)

    def part(self, start: int, stop: int) -> Queries:
        """Of the histories start .. stop-1, of which there may be fewer."""
        stop = min(stop, len(self))
        own = None if self.own is None else self.own.part(start, stop)
        return Queries(self.states[start:stop], own)

    def __len__(self) -> int:
        return len(self.states)


class ScoreBlock:
    """A reusable buffer of scores [rows, width]; ``-inf`` stands for an item left out.

    ``width`` is the catalogue rounded up to whole groups. One row of the catalogue is the least
    that is held, so a budget below it is exceeded.
    """

    def __init__(
        self,
        scorer: Any,
        histories: int,
        *,
        device: torch.device,
        score_elements: int,
        items: np.ndarray | None = None,
    ):
        if score_elements < 1:
            raise ConfigError(f"score_elements is {score_elements}: it must be at least 1")
        self.scorer = scorer
        self.width = width = -(-scorer.num_items // GROUP) * GROUP
        affordable = max(1, score_elements // width)
        self.tile_rows = min(TILE_ROWS, affordable, histories)
        tiles = min(affordable // self.tile_rows, -(-histories // self.tile_rows))
        self.rows = max(1, tiles) * self.tile_rows
        self.device = device
        self.starts = range(0, scorer.num_items, TILE_ITEMS)
        self.left_out = None
        if items is not None:
            # Where own items are mixed in, scores depend on those of the whole catalogue.
            if not mixes_own(scorer):
                self.starts = (np.unique(items // TILE_ITEMS) * TILE_ITEMS).tolist()
            self.left_out = torch.ones(width, dtype=torch.bool, device=device)
            self.left_out[torch.from_numpy(items).to(device)] = False

    @cached_property
    def buffer(self) -> Tensor:
        """Made when it is first needed, and not where the best items are found without."""
        return torch.full((self.rows, self.width), -torch.inf, device=self.device)

    def fill(self, queries: Queries) -> Tensor:
        """Scores [len(queries), width] of at most ``rows`` queries, a view of the buffer."""
        block, states, own = self.buffer[: len(queries)], queries.states, queries.own
        lowest = torch.finfo(block.dtype).min
        lse = torch.full((len(queries),), -torch.inf, device=block.device)
        for row in range(0, len(queries), self.tile_rows):
            part = states[row : row + self.tile_rows]
            for start in self.starts:
                stop = min(start + TILE_ITEMS, self.scorer.num_items)
                scores = self.scorer.scores(part, start, stop)
                if scores.shape != (len(part), stop - start):
                    raise DataError(
                        f"scores of items {start} to {stop} have shape {tuple(scores.shape)}: "
                        f"{(len(part), stop - start)} is needed"
                    )
                target = block[row : row + len(part), start:stop]
                # Keeps -inf for items that are left out; NaN passes and is found in `best`.
                torch.clamp(scores.float(), min=lowest, out=target)
                if own is not None:
                    sums = lse[row : row + len(part)]
                    torch.logaddexp(sums, target.logsumexp(1), out=sums)
        if own is not None:
            found = block[own.history, own.items]
            block[own.history, own.items] = self.scorer.own_scores(states, lse, own, found)
        if self.left_out is not None:
            block.masked_fill_(self.left_out, -torch.inf)
        return block


@contextmanager
def scoring_mode(scorer: Any) -> Iterator[None]:
    """No gradients and no dropout inside; a model in training mode is put back into it after."""
    training = bool(getattr(scorer, "training", False))
    if training:
        scorer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            scorer.train()


def full_precision(device: torch.device) -> torch.autocast:
    """Scores are float32 even where the encoder runs in bfloat16, which would create ties."""
    return torch.autocast(device.type, enabled=False)


def as_queries(queries: Tensor) -> Tensor:
    """Queries in float32 where they are floating; item rows and the like stay what they are."""
    return queries.float() if queries.is_floating_point() else queries


def refuse_nan(scores: Tensor) -> None:
    """Raise TrainingError when a score is not a number."""
    if bool(torch.isnan(scores).any()):
        raise TrainingError(
            "the model gives scores that are not a number: its weights are damaged, "
            "or its training diverged"
        )


def count_at_least(block: Tensor, rows: Tensor | None, scores: Tensor) -> Tensor:
    """Number of items in ``block[rows]`` with a score of at least ``scores``, int64 [len(scores)].

    ``rows`` None stands for every row, in order.
    """
    counts = torch.zeros(len(scores), dtype=torch.int64, device=block.device)
    step = min(TILE_ITEMS, max(GROUP, WORK_ELEMENTS // max(1, len(scores))))
    # A comparison written as float32 and summed is four times as fast as a count of booleans;
    # sums of at most TILE_ITEMS ones are exact.
    work = torch.empty(len(scores) * min(step, block.shape[1]), device=block.device)
    for start in range(0, block.shape[1], step):
        tile = block[:, start : start + step]
        tile = tile if rows is None else tile.index_select(0, rows)
        reached = work[: tile.numel()].view(tile.shape)
        torch.ge(tile, scores[:, None], out=reached)
        counts += reached.sum(1).long()
    return counts


def best(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best item rows of every row, best first, equal scores in order of item row.

    Returns:
        item rows int64 [n, k] and scores float32 [n, k]; -1 and -inf where fewer items are left.

    Raises:
        TrainingError: a score is not a number.
    """
    maxima = block.view(len(block), -1, GROUP).amax(-1)  # [n, groups]
    refuse_nan(maxima)
    width = min(k, maxima.shape[1]) * GROUP
    step = max(1, WORK_ELEMENTS // max(width, maxima.shape[1]))
    parts = [
        _best_of_groups(block[row : row + step], maxima[row : row + step], k)
        for row in range(0, len(block), step)
    ]
    rows, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    rows = _without_left_out(rows, scores)
    missing = (0, k - rows.shape[1])
    return (
        torch.nn.functional.pad(rows, missing, value=-1),
        torch.nn.functional.pad(scores, missing, value=-torch.inf),
    )


def in_order(rows: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Item rows and scores [n, k], best first, equal scores in order of item row.

    -1 stands for an item with a score of -inf.
    """
    picked = _order(scores, rows).sort(descending=True).indices
    rows, scores = rows.gather(1, picked), scores.gather(1, picked)
    return _without_left_out(rows, scores), scores


def _without_left_out(rows: Tensor, scores: Tensor) -> Tensor:
    return rows.masked_fill(scores == -torch.inf, -1)


def _best_of_groups(block: Tensor, maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # An item of the k best cannot stand outside the k best groups, ordered by (maximum, number):
    # every group before its own holds an item that goes before it.
    numbers = torch.arange(maxima.shape[1], device=block.device).expand_as(maxima)
    chosen = _order(maxima, numbers).topk(min(k, maxima.shape[1])).indices  # [n, groups kept]
    inside = torch.arange(GROUP, device=block.device)
    rows = (chosen[:, :, None] * GROUP + inside).flatten(1)  # [n, groups kept * GROUP]
    scores = block.gather(1, rows)
    picked = _order(scores, rows).topk(min(k, rows.shape[1])).indices
    return rows.gather(1, picked), scores.gather(1, picked)


def _order(scores: Tensor, numbers: Tensor) -> Tensor:
    """Distinct int64 keys that sort by score, then by falling number."""
    # Adding zero makes -0.0 and 0.0 the same bits; flipping negatives makes the bits sort.
    bits = (scores + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.long() << 32) + (0xFFFFFFFF - numbers)
