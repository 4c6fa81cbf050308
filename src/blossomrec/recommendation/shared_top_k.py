"""The best items of histories, exactly, by ranks each of which has a part of the catalogue.

Every rank encodes histories of its own. Their queries meet the catalogue where it is: a rank ranks
its items for the histories of all, and what it finds best goes back to the rank that asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from blossomrec.evaluation import scoring
from blossomrec.evaluation.product_top_k import ProductTopK, vectors_for
from blossomrec.evaluation.scoring import GROUP, Queries
from blossomrec.evaluation.shared_items import SharedItems
from blossomrec.evaluation.top_k import BlockLists, Choice, Reordering, Seen, pick
from blossomrec.ranks import Ranks
from blossomrec.recommendation.request import Request
from blossomrec.recommendation.shared_scores import Pairs, SharedScores, left_out
from blossomrec.rules.catalogue import ItemRules

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.models.sequence import SequenceModel
    from blossomrec.rules.choice import RuledChoice


class SharedTopK:
    """As :class:`blossomrec.evaluation.top_k.TopK`, by ranks who share the items of a model.

    All ranks make one, and call :meth:`of` in the same order.

    Args:
        model: which has this rank's part of the item table, in evaluation mode on its device.
        ranks: who share it.
        request: what is asked for.
        histories: of the largest batch of a rank.
    """

    def __init__(self, model: SequenceModel, ranks: Ranks, request: Request, histories: int):
        self._model, self._ranks, self._request = model, ranks, request
        self._device, rules = model.item_embeddings.weight.device, request.rules or ItemRules()
        self._boosts, self._shared = rules.boosts, SharedItems(model, ranks, self._device)
        given = {"chosen": request.items, "boosts": rules.boosts}
        with torch.no_grad():
            self._scores = SharedScores(model, self._shared, ranks, histories, **given)
            self._choice, self._directions = self._choosing(rules.choice)
            self._choice_of_all, self._directions_of_all = self._choosing(rules.choice)
        # Ranks without histories look as deep for others as these do.
        self._unchanged: Reordering | None = None
        if rules.reranking is not None:
            self._unchanged = Reordering(rules.reranking.depth, lambda _, *best: best)
            if rules.fallback is not None:
                # Vectors are fetched now, by all: later each rank asks by itself.
                self.of_all(rules.fallback, self._unchanged)

    def of(
        self, batch: Batch | None, seen: Seen | None = None, reordering: Reordering | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64 [B, k], best first, and their scores float32 [B, k].

        -1 and -inf stand where fewer than k items may be recommended.

        Args:
            batch: histories of this rank; None where it has none, and ranks for others alone.

        Raises:
            TrainingError: a score is not a number.
        """
        k = self._request.k
        rows, scores = [np.empty((0, k), np.int64)], [np.empty((0, k), np.float32)]
        with scoring.scoring_mode(self._model):
            queries = self._shared.queries(None if batch is None else batch.to(self._device))
            each = self._scores.rows
            for number in range(self._ranks.agree(-(-len(queries) // each))[0]):
                start, stop = (min(edge * each, len(queries)) for edge in (number, number + 1))
                some = None if seen is None else seen.part(start, stop)
                later = self._unchanged if reordering is None else reordering.after(start)
                with scoring.full_precision(self._device):
                    found = self._block(queries.part(start, stop), some, later)
                rows.append(found[0])
                scores.append(found[1])
        return np.concatenate(rows), np.concatenate(scores)

    def of_all(
        self, scores: np.ndarray, reordering: Reordering | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64 [k] and scores float32 [k] by scores, float32 [I], that all share.

        Every rank finds them for itself, in host memory; without a new order all call it together.
        """
        num_items, k, chosen = self._model.num_items, self._request.k, self._request.items
        block = torch.full((1, -(-num_items // GROUP) * GROUP), -torch.inf)
        whole = block[:, :num_items]
        whole[0] = torch.from_numpy(scores)
        if chosen is not None:
            whole.masked_fill_(left_out(chosen, range(num_items)), -torch.inf)
        if self._boosts is not None:
            whole += torch.from_numpy(self._boosts)
        lists = _ListsOfAll(block, range(num_items), self._directions_of_all)
        rows, best = pick(lists, k, num_items, self._choice_of_all, reordering)
        return rows[0], best[0]

    def _choosing(
        self, choice: RuledChoice | None
    ) -> tuple[RuledChoice | None, _Directions | None]:
        """A choice by vectors that are fetched from where they are; these are None without any."""
        if choice is None or choice.vectors is None:
            return choice, None
        directions = _Directions(self._shared, self._device)
        return replace(choice, vectors=directions), directions

    def _block(
        self, queries: Queries, seen: Seen | None, reordering: Reordering | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best for some own histories; other ranks ask for theirs."""
        pieces = self._ranks.gather_pieces(queries.states)
        sizes = [len(each) for each in pieces]
        none = Seen.of([]) if seen is None else seen
        pairs = Pairs(self._ranks, sizes, *none.on(self._device))
        if self._choice is None and reordering is None and self._products is not None:
            found = _ProductLists(self._products, torch.cat(pieces), pairs, self._model.held_items)
        else:
            block = self._scores.of(pieces, queries, pairs)
            found = BlockLists(block, self._scores.items)
        lists = _SharedLists(self._ranks, sizes, found, self._directions, self._device)
        k, num_items = self._request.k, self._model.num_items
        return pick(lists, k, num_items, self._choice, reordering)

    @cached_property
    def _products(self) -> ProductTopK | None:
        """Finds the best of the items that this rank holds where no scores are in memory for it."""
        held, k = self._model.held_items, min(self._request.k, self._model.num_items)
        vectors = None if scoring.mixes_own(self._model) else vectors_for(self._model, k)
        if vectors is None:
            return None
        offsets = vectors.new_zeros(len(vectors), dtype=torch.float32)
        if self._boosts is not None:
            offsets += torch.from_numpy(self._boosts[held.start : held.stop]).to(self._device)
        if self._request.items is not None:
            outside = left_out(self._request.items, held).to(self._device)
            offsets.masked_fill_(outside, -torch.inf)
        return ProductTopK(
            vectors, min(k, len(held)), offsets, score_elements=scoring.SCORE_ELEMENTS
        )


class _Directions:
    """Vectors of length 1 of items that were fetched, wherever they are.

    Called, it gives those of item rows, int64 [n], as float32 [n, D].
    """

    def __init__(self, shared: SharedItems, device: torch.device):
        self._shared, self._device = shared, device
        self._rows, self._vectors = np.empty(0, np.int64), torch.empty(0)

    def fetch(self, rows: np.ndarray) -> None:
        """Have the vectors of these rows, of which negative ones are none; all ranks call it."""
        self._rows = np.unique(rows[rows >= 0])
        with torch.no_grad():
            vectors = self._shared.fetch(torch.from_numpy(self._rows).to(self._device))
        self._vectors = vectors

    def knows(self, rows: np.ndarray) -> bool:
        """Whether they are here."""
        return bool(np.isin(rows[rows >= 0], self._rows).all())

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        places = torch.from_numpy(np.searchsorted(self._rows, rows)).to(self._device)
        return normalize(self._vectors[places].float(), dim=-1).cpu().numpy()


class _ListsOfAll(BlockLists):
    """The best by scores that all share; vectors are fetched where they are not here."""

    def __init__(self, block: Tensor, items: range, directions: _Directions | None):
        super().__init__(block, items)
        self._directions = directions

    def best(self, histories: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        rows, scores = super().best(histories, size)
        if self._directions is not None and not self._directions.knows(rows):
            self._directions.fetch(rows)
        return rows, scores


class _ProductLists:
    """The best of a rank's items by products of vectors, of all histories."""

    def __init__(self, products: ProductTopK, states: Tensor, seen: Pairs, items: range):
        self._products, self._states, self._seen, self._items = products, states, seen, items

    def best_of(self, histories: Tensor, size: int) -> tuple[Tensor, Tensor]:
        rows, scores = self._products.of(self._states, self._seen.within(self._items)[1])
        missing = (0, size - rows.shape[1])
        rows = torch.where(rows < 0, rows, rows + self._items.start)
        return pad(rows, missing, value=-1), pad(scores, missing, value=-torch.inf)


class _SharedLists:
    """The best for the histories of this rank, of what each rank finds best of its own items; see
    :class:`blossomrec.evaluation.top_k.Lists`.

    Args:
        sizes: how many histories each rank has.
        found: the best of the own items for the histories of all.
        directions: are to be had of all that is listed; None for none.
    """

    def __init__(
        self,
        ranks: Ranks,
        sizes: Sequence[int],
        found: BlockLists | _ProductLists,
        directions: _Directions | None,
        device: torch.device,
    ):
        self._ranks, self._sizes, self._found = ranks, sizes, found
        self._directions, self._device = directions, device

    def __len__(self) -> int:
        return self._sizes[self._ranks.rank]

    def best(self, histories: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        ranks, before = self._ranks, sum(self._sizes[: self._ranks.rank])
        asked = ranks.gather_pieces(torch.from_numpy(histories + before).to(self._device))
        rows, scores = self._found.best_of(torch.cat(asked), size)
        # Nothing stands last whatever its row is.
        rows = rows.clamp(min=0)
        sent, mine = [len(each) for each in asked], [len(histories)] * ranks.size
        rows, scores = (
            ranks.exchange(each, sent, mine).view(ranks.size, len(histories), size)
            for each in (rows, scores)
        )
        together = (each.transpose(0, 1).flatten(1) for each in (rows, scores))
        rows, scores = scoring.in_order(*together)
        found = rows[:, :size].cpu().numpy()
        if self._directions is not None:
            self._directions.fetch(found)
        return found, scores[:, :size].cpu().numpy()

    def close(self, chosen: Mapping[int, np.ndarray], choice: Choice) -> None:
        assert isinstance(self._found, BlockLists)
        lengths = [len(each) for each in chosen.values()]
        owners = np.repeat(np.array(list(chosen), np.int64), lengths)
        rows = np.concatenate([np.empty(0, np.int64), *chosen.values()])
        given = (torch.from_numpy(each).to(self._device) for each in (owners, rows))
        pairs = Pairs(self._ranks, self._sizes, *given)
        histories, items = pairs.histories.cpu().numpy(), pairs.items.cpu().numpy()
        self._found.close({one: items[histories == one] for one in np.unique(histories)}, choice)

    def are_wanted(self, histories: int) -> bool:
        return self._ranks.agree(histories)[0] > 0
