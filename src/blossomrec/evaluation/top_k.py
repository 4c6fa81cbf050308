"""The best items of packed histories, exactly, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from blossomrec.evaluation import scoring
from blossomrec.evaluation.product_top_k import ProductTopK, vectors_for
from blossomrec.evaluation.quantised_top_k import Offsets, quantised_for

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

    def closed(self, rows: np.ndarray, items: range) -> np.ndarray | None:
        """Which of some items cannot follow those that were chosen, bool [len(items)], whatever the
        list.

        None where that is not known, or a longer list could lead to another choice.
        """
        ...


class Lists(Protocol):
    """The best items of histories, as far down as they are asked for, wherever scores are."""

    def __len__(self) -> int:
        """How many histories there are."""
        ...

    def best(self, histories: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64 [n, size], best first, and scores float32 [n, size] of some histories.

        -1 and -inf stand where fewer items are left.
        """
        ...

    def close(self, chosen: Mapping[int, np.ndarray], choice: Choice) -> None:
        """Leave out what cannot follow, so that a list does not grow for nothing.

        Args:
            chosen: item rows, which stay, by the number of a history.
        """
        ...

    def are_wanted(self, histories: int) -> bool:
        """Whether to go on, where so many histories need a longer list."""
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


def pick(
    lists: Lists, k: int, num_items: int, choice: Choice | None, reordering: Reordering | None
) -> tuple[np.ndarray, np.ndarray]:
    """Item rows int64 [n, k] and scores float32 [n, k] that are recommended after each history.

    -1 and -inf stand where there are fewer than k.
    """
    if choice is None and reordering is None:
        # A list longer than the catalogue would only be padding.
        return padded(*lists.best(np.arange(len(lists)), min(k, num_items)), k)
    rows, scores = unfilled(len(lists), k)
    found = choose(lists, k, num_items, choice, reordering)
    for history, (chosen, valued) in enumerate(found):
        rows[history, : len(chosen)], scores[history, : len(chosen)] = chosen, valued
    return rows, scores


def choose(
    lists: Lists, k: int, num_items: int, choice: Choice | None, reordering: Reordering | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Item rows and scores that are chosen for each history, at most k of them.

    Without a new order they come from as deep in the list as is needed; with one, from those items
    that it was made of.

    Args:
        choice: None takes the first k of a new order.
    """
    if reordering is None:
        assert choice is not None
        return _deepened(lists, k, num_items, choice)
    best = lists.best(np.arange(len(lists)), min(max(reordering.depth, k), num_items))
    return list(_reordered(best, k, choice, reordering))


def unfilled(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists without items, of n histories."""
    return np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)


def padded(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of k items from shorter ones."""
    missing = (0, 0), (0, k - rows.shape[1])
    return (
        np.pad(rows, missing, constant_values=-1).astype(np.int64, copy=False),
        np.pad(scores, missing, constant_values=-np.inf).astype(np.float32, copy=False),
    )


def _reordered(
    best: tuple[np.ndarray, np.ndarray], k: int, choice: Choice | None, reordering: Reordering
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number, (listed, valued) in enumerate(zip(*best, strict=True)):
        there = int((listed >= 0).sum())
        rows, scores = reordering.reorder(number, listed[:there], valued[:there])
        chosen = slice(k) if choice is None else choice.choose(rows, scores, k)
        yield rows[chosen], scores[chosen]


def _deepened(
    lists: Lists, k: int, num_items: int, choice: Choice
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is chosen of lists of the best that grow until they hold enough."""
    found = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(lists)
    waiting, size = np.arange(len(lists)), min(choice.pool(k), num_items)
    while lists.are_wanted(len(waiting)):
        short = dict[int, np.ndarray]()
        for history, listed, valued in zip(waiting, *lists.best(waiting, size), strict=True):
            there = int((listed >= 0).sum())
            chosen = choice.choose(listed[:there], valued[:there], k)
            if len(chosen) < k and there == size < num_items:
                short[int(history)] = listed[chosen]
                continue
            found[history] = listed[chosen], valued[chosen]
        lists.close(short, choice)
        waiting, size = np.array(list(short), dtype=np.int64), min(4 * size, num_items)
    return found


class BlockLists:
    """The best items by scores in memory, of the whole catalogue or of a part of it; see
    :class:`Lists`.

    Args:
        block: scores [n, width], which are changed; width is that of the items in whole groups.
        items: whose scores they are.
    """

    def __init__(self, block: Tensor, items: range):
        self.block, self._items = block, items

    def __len__(self) -> int:
        return len(self.block)

    def best(self, histories: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        return _arrays(self.best_of(torch.from_numpy(histories), size))

    def best_of(self, histories: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """As :meth:`best`, on the device of the scores."""
        whole = len(histories) == len(self.block)
        rows, scores = scoring.best(
            self.block if whole else self.block[histories.to(self.block.device)], size
        )
        return torch.where(rows < 0, rows, rows + self._items.start), scores

    def close(self, chosen: Mapping[int, np.ndarray], choice: Choice) -> None:
        for history, rows in chosen.items():
            closed = choice.closed(rows, self._items)
            if closed is None:
                continue
            here = (rows >= self._items.start) & (rows < self._items.stop)
            closed[rows[here] - self._items.start] = False
            left_out = torch.from_numpy(closed).to(self.block.device)
            self.block[history, : len(closed)].masked_fill_(left_out, -torch.inf)

    def are_wanted(self, histories: int) -> bool:
        return histories > 0


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
        return ProductTopK(vectors, k, self._offsets, score_elements=self._score_elements)

    @cached_property
    def _offsets(self) -> Tensor | None:
        """What is added to the scores of all items, float32 [I]; None for nothing.

        -inf leaves an item out.
        """
        left_out, boosts = self._block.left_out, self._boosts
        if left_out is None:
            return boosts
        left_out = left_out[: self.scorer.num_items]
        boosts = torch.zeros(len(left_out), device=self.device) if boosts is None else boosts
        return boosts.masked_fill(left_out, -torch.inf)

    @cached_property
    def _quantised_offsets(self) -> Offsets | None:
        """The same for :class:`QuantisedTopK`."""
        return None if self._offsets is None else Offsets(self._offsets)

    def _quantised(
        self, queries: scoring.Queries, seen: Seen | None
    ) -> tuple[Tensor, Tensor] | None:
        """The top of the lists by a copy of the vectors in 8 bits; None where there is none."""
        k = min(self.k, self.scorer.num_items)
        if self._choice is not None:
            return None
        top = quantised_for(self.scorer, self._block, k, len(queries))
        if top is None:
            return None
        offsets = self._quantised_offsets
        if offsets is not None and not offsets.bounded:
            return None
        left_out = (Seen.of([]) if seen is None else seen).on(self.device)
        with scoring.full_precision(self.device):
            return top.of(queries.states, k, [offsets] * len(queries), left_out)

    def of(
        self,
        batch: Batch | None,
        seen: Seen | None = None,
        reordering: Reordering | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64 [B, k], best first, and their scores float32 [B, k].

        -1 and -inf stand where fewer than k items may be recommended.

        Args:
            batch: None for no histories.

        Raises:
            TrainingError: a score is not a number.
        """
        if batch is None:
            return unfilled(0, self.k)
        n, lists = batch.num_histories, list[tuple[np.ndarray, np.ndarray]]()
        with scoring.scoring_mode(self.scorer):
            queries = scoring.Queries.of(self.scorer, batch.to(self.device))
            if reordering is None and self._products is not None:
                left_out = None if seen is None else seen.on(self.device)
                with scoring.full_precision(self.device):
                    found = self._products.of_mixed(self.scorer, queries, left_out)
                return padded(*_arrays(found), self.k)
            found = None if reordering is not None else self._quantised(queries, seen)
            if found is not None:
                return padded(*_arrays(found), self.k)
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
        # What is left out is so already, and stays so with boosts that are infinite.
        offsets = None if self._boosts is None else self._offsets
        if offsets is not None:
            block[:, : self.scorer.num_items] += offsets
        if seen is not None:
            block[seen.on(block.device)] = -torch.inf
        lists = BlockLists(block, range(self.scorer.num_items))
        return pick(lists, self.k, self.scorer.num_items, self._choice, reordering)


def _arrays(tensors: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    first, second = tensors
    return first.cpu().numpy(), second.cpu().numpy()
