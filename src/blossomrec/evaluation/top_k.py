"""The best items of packed histories, exactly, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from blossomrec.evaluation import scoring
from blossomrec.evaluation.product_top_k import ProductTopK, vectors_for

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch


class Seen(NamedTuple):
    """Items that must not be recommended: histories, rising, and item rows, int64 [N]."""

    histories: np.ndarray
    items: np.ndarray

    @staticmethod
    def of(items: Sequence[np.ndarray]) -> Seen:
        """Of the item rows of one history after another."""
        lengths = [len(each) for each in items]
        joined = np.concatenate([*items, np.empty(0, np.int64)]).astype(np.int64)
        return Seen(np.repeat(np.arange(len(lengths)), lengths), joined)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The same on a device."""
        return torch.from_numpy(self.histories).to(device), torch.from_numpy(self.items).to(device)

    def part(self, start: int, stop: int) -> Seen:
        """Of the histories start .. stop-1."""
        first, end = np.searchsorted(self.histories, [start, stop])
        return Seen(self.histories[first:end] - start, self.items[first:end])


class Choice(Protocol):
    """How k items are chosen from a list of the best ones, other than from its top."""

    def pool(self, k: int) -> int:
        """How many of the best items to choose from at first; more are looked at where needed."""
        ...

    def choose(self, rows: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
        """Positions of up to k items in a list of them, int64.

        Args:
            rows: item rows, int64 [n], best first.
            scores: float32 [n].
        """
        ...

    def closed(self, rows: np.ndarray) -> np.ndarray | None:
        """Which items cannot follow those that were chosen, bool [I], whatever the list.

        None where that is not known, or a longer list could lead to another choice.
        """
        ...


class Reordering(NamedTuple):
    """What gives the best items of a history another order.

    Attributes:
        depth: of how many, or of k if that is more.
        reorder: gives, of the number of a history, item rows and their scores, best first, the same
            or fewer in the new order.
    """

    depth: int
    reorder: Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    def after(self, start: int) -> Reordering:
        """The same for histories that are counted from ``start``."""
        return Reordering(self.depth, lambda number, *best: self.reorder(start + number, *best))


def choose(
    block: Tensor, k: int, num_items: int, choice: Choice | None, reordering: Reordering | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Item rows and scores that are chosen for each history, at most k of them.

    Without a new order they come from as deep in the list as is needed; with one, from those items
    that it was made of.

    Args:
        block: scores [n, width], which are changed; width is I in whole groups.
        choice: None takes the first k.
    """
    if reordering is None:
        return _deepened(block, k, num_items, choice)
    best, values = _arrays(scoring.best(block, min(max(reordering.depth, k), num_items)))
    found = []
    for number, (listed, valued) in enumerate(zip(best, values, strict=True)):
        there = int((listed >= 0).sum())
        rows, scores = reordering.reorder(number, listed[:there], valued[:there])
        chosen = slice(k) if choice is None else choice.choose(rows, scores, k)
        found.append((rows[chosen], scores[chosen]))
    return found


def _deepened(
    block: Tensor, k: int, num_items: int, choice: Choice | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is chosen of lists of the best that grow until they hold enough."""
    assert choice is not None
    found = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(block)
    waiting, size = np.arange(len(block)), min(choice.pool(k), num_items)
    while len(waiting):
        some = block if len(waiting) == len(block) else block[torch.from_numpy(waiting)]
        best, values = _arrays(scoring.best(some, size))
        short = []
        for history, listed, valued in zip(waiting, best, values, strict=True):
            there = int((listed >= 0).sum())
            chosen = choice.choose(listed[:there], valued[:there], k)
            if len(chosen) < k and there == size < num_items:
                short.append(history)
                _close(block[history], listed[chosen], choice)
                continue
            found[history] = listed[chosen], valued[chosen]
        waiting, size = np.array(short, dtype=np.int64), min(4 * size, num_items)
    return found


def _close(scores: Tensor, chosen: np.ndarray, choice: Choice) -> None:
    """Leave out what cannot follow, so that a list does not grow for nothing."""
    closed = choice.closed(chosen)
    if closed is not None:
        closed[chosen] = False
        scores[: len(closed)].masked_fill_(torch.from_numpy(closed).to(scores.device), -torch.inf)


class TopK:
    """The k items with the highest scores of each history, equal scores in order of item row.

    One buffer of scores serves all batches; its size depends on neither them nor the catalogue,
    and neither does a list. There is none where :class:`ProductTopK` ranks instead.

    Args:
        scorer: as for ``evaluate``; it already lies on ``device``, and does not change meanwhile.
        k: items wanted for each history.
        histories: of the largest batch, which bounds the buffer.
        items: the only item rows that may be recommended, int64, rising; None for all.
        boosts: float32 [I], what is added to the scores; None for nothing.
        choice: how items are chosen from the best ones; None for the top of the list.
        score_elements: scores held at a time, or one row of the catalogue if that is more.
    """

    def __init__(
        self,
        scorer: Any,
        k: int,
        histories: int,
        *,
        items: np.ndarray | None = None,
        boosts: np.ndarray | None = None,
        choice: Choice | None = None,
        device: str | torch.device = "cpu",
        score_elements: int | None = None,
    ):
        self.scorer, self.k, self.device, self._choice = scorer, k, torch.device(device), choice
        elements = scoring.SCORE_ELEMENTS if score_elements is None else score_elements
        self._score_elements = elements
        self._block = scoring.ScoreBlock(
            scorer, histories, device=self.device, score_elements=elements, items=items
        )
        self._boosts = None if boosts is None else torch.from_numpy(boosts).to(self.device)

    @cached_property
    def _products(self) -> ProductTopK | None:
        """Finds the top of the list where that takes no scores in memory."""
        k = min(self.k, self.scorer.num_items)
        vectors = None if self._choice is not None else vectors_for(self.scorer, k)
        if vectors is None:
            return None
        left_out, offsets = self._block.left_out, self._boosts
        if left_out is not None:
            offsets = (
                vectors.new_zeros(len(vectors), dtype=torch.float32) if offsets is None else offsets
            )
            offsets = offsets.masked_fill(left_out[: len(vectors)], -torch.inf)
        return ProductTopK(vectors, k, offsets, score_elements=self._score_elements)

    def of(
        self, batch: Batch, seen: Seen | None = None, reordering: Reordering | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64 [B, k], best first, and their scores float32 [B, k].

        -1 and -inf stand where fewer than k items may be recommended.

        Raises:
            TrainingError: a score is not a number.
        """
        n, lists = batch.num_histories, list[tuple[np.ndarray, np.ndarray]]()
        with scoring.scoring_mode(self.scorer):
            queries = scoring.Queries.of(self.scorer, batch.to(self.device))
            if reordering is None and self._products is not None:
                left_out = None if seen is None else seen.on(self.device)
                with scoring.full_precision(self.device):
                    found = self._products.of_mixed(self.scorer, queries, left_out)
                return self._padded(*_arrays(found))
            for start in range(0, n, self._block.rows):
                stop = min(start + self._block.rows, n)
                with scoring.full_precision(self.device):
                    filled = self._block.fill(queries.part(start, stop))
                some = None if seen is None else seen.part(start, stop)
                later = None if reordering is None else reordering.after(start)
                lists.append(self.pick(filled, some, later))
        rows, scores = zip(*lists, strict=True)
        return np.concatenate(rows), np.concatenate(scores)

    def of_all(
        self, scores: np.ndarray, reordering: Reordering | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64 [k] and scores float32 [k] by scores, float32 [I], that all share."""
        block = torch.full((1, self._block.width), -torch.inf, device=self.device)
        block[0, : len(scores)] = torch.from_numpy(scores)
        if self._block.left_out is not None:
            block.masked_fill_(self._block.left_out, -torch.inf)
        rows, best = self.pick(block, None, reordering)
        return rows[0], best[0]

    def pick(
        self, block: Tensor, seen: Seen | None = None, reordering: Reordering | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same from scores [n, width], which are changed; width is I in whole groups."""
        if self._boosts is not None:
            block[:, : self.scorer.num_items] += self._boosts
        if seen is not None:
            block[seen.on(block.device)] = -torch.inf
        num_items = self.scorer.num_items
        if self._choice is None and reordering is None:
            # A list longer than the catalogue would only be padding.
            return self._padded(*_arrays(scoring.best(block, min(self.k, num_items))))
        found = choose(block, self.k, num_items, self._choice, reordering)
        rows, scores = self._padded(*np.empty((2, len(block), 0)))
        for history, (chosen, valued) in enumerate(found):
            rows[history, : len(chosen)], scores[history, : len(chosen)] = chosen, valued
        return rows, scores

    def _padded(self, rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists of k items from shorter ones."""
        missing = (0, 0), (0, self.k - rows.shape[1])
        return (
            np.pad(rows, missing, constant_values=-1).astype(np.int64, copy=False),
            np.pad(scores, missing, constant_values=-np.inf).astype(np.float32, copy=False),
        )


def _arrays(tensors: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    first, second = tensors
    return first.cpu().numpy(), second.cpu().numpy()
