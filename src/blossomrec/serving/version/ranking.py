"""The best items for encoded histories, each with its own items to leave out or to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from blossomrec.errors import RerankerError
from blossomrec.evaluation import scoring
from blossomrec.evaluation.quantised_top_k import quantised_for
from blossomrec.evaluation.top_k import BlockLists, Reordering, Seen, choose
from blossomrec.models.fused.quantised_items import KeptCopy, Offsets
from blossomrec.models.sequence import SequenceModel
from blossomrec.rules.catalogue import ItemRules
from blossomrec.rules.reranking import AskedFor


@dataclass(frozen=True)
class Choice:
    """Which items may be recommended.

    Attributes:
        k: how many.
        left_out: item rows that may not, arrays of int64.
        among: the only item rows that may; None for the whole catalogue.
        rules: what else decides; None for nothing.
        asked: for whom, which the re-ranker of the rules is told; None where there is none.
    """

    k: int
    left_out: list[np.ndarray] = field(default_factory=list)
    among: np.ndarray | None = None
    rules: ItemRules | None = None
    asked: AskedFor | None = None

    @property
    def is_top(self) -> bool:
        """Whether the items are the top of the list."""
        return self.rules is None or (self.rules.choice is None and self.rules.reranking is None)

    @property
    def reordering(self) -> Reordering | None:
        """What the re-ranker makes of the best items; None without one."""
        reranking = None if self.rules is None else self.rules.reranking
        if reranking is None or self.asked is None:
            return None
        asked, k = self.asked, self.k
        return Reordering(
            reranking.depth, lambda _, rows, scores: reranking.order(rows, scores, k, asked)
        )


# Item rows, best first, and their scores.
Best = tuple[np.ndarray, np.ndarray]


class Ranking:
    """Exact top-k over a catalogue, in tiles; items can be switched off.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: SequenceModel):
        self._model = model
        self._device = model.item_embeddings.weight.device
        self._off = _Off(np.empty(0, np.int64), model.num_items)
        self._table: _Table | None = None

    def switch_off(self, rows: np.ndarray) -> None:
        """From now on recommend none of these items, and all others."""
        self._off = _Off(rows, self._model.num_items)

    def best(
        self, queries: scoring.Queries, choices: Sequence[Choice]
    ) -> list[Best | RerankerError]:
        """The best items for each of the queries; fewer where fewer are allowed.

        Where a re-ranker fails, its error stands in the place of the items.

        Raises:
            TrainingError: a score is not a number.
        """
        return _best(self._model, queries, choices, self._off, self._device)

    def best_of(self, scores: np.ndarray, choice: Choice) -> Best:
        """The best items by scores that are the same for everybody, float32 [I].

        Raises:
            RerankerError: the re-ranker of the choice fails.
        """
        shared = _Shared(torch.from_numpy(scores).to(self._device))
        one = scoring.Queries(torch.zeros(1, 1, device=self._device))
        (found,) = _best(shared, one, [choice], self._off, self._device)
        if isinstance(found, RerankerError):
            raise found
        return found

    def similar(self, rows: np.ndarray, k: int) -> list[Best]:
        """The items whose embeddings are closest by cosine to each of ``rows``, itself left out."""
        table = self._directions()
        choices = [Choice(k, [row]) for row in rows[:, None]]
        queries = scoring.Queries(table.vectors[torch.from_numpy(rows).to(self._device)])
        found = _best(table, queries, choices, self._off, self._device)
        return [each for each in found if not isinstance(each, RerankerError)]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of items, of length 1: float32 [n, D]."""
        vectors = self._directions().vectors
        return vectors[torch.from_numpy(rows).to(self._device)].cpu().numpy()

    def _directions(self) -> _Table:
        if self._table is None:
            # No copy in 8 bits is kept of what is made in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                self._table = _Table(normalize(self._model.output_weight().float(), dim=-1))
        return self._table


class _Off:
    """Items that are switched off, and the same as what is added to scores."""

    def __init__(self, rows: np.ndarray, num_items: int):
        self.rows, self.offsets = rows, None
        if len(rows):
            values = torch.zeros(num_items)
            values[torch.from_numpy(rows)] = -torch.inf
            self.offsets = Offsets(values)


class _Table:
    """Scores by product with the rows of a table."""

    def __init__(self, vectors: Tensor):
        self.num_items, self.vectors, self.quantised = len(vectors), vectors, KeptCopy()

    def score_vectors(self) -> Tensor:
        return self.vectors

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        return queries @ self.vectors[start:stop].T


class _Shared:
    """The same scores for every query."""

    def __init__(self, scores: Tensor):
        self.num_items, self._scores = len(scores), scores

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        return self._scores[start:stop].expand(len(queries), -1)


def _best(
    scorer: SequenceModel | _Table | _Shared,
    queries: scoring.Queries,
    choices: Sequence[Choice],
    off: _Off,
    device: torch.device,
) -> list[Best | RerankerError]:
    block = scoring.ScoreBlock(
        scorer, len(queries), device=device, score_elements=scoring.SCORE_ELEMENTS
    )
    found = list[Best | RerankerError]()
    for start in range(0, len(queries), block.rows):
        part, some = choices[start : start + block.rows], queries.part(start, start + block.rows)
        quantised = _quantised(scorer, block, some, part, off)
        if quantised is not None:
            found += _listed(*quantised, part)
            continue
        with scoring.full_precision(device):
            scores = block.fill(some)
        for row, choice in zip(scores, part, strict=True):
            _restrict(row, choice, off.rows, scorer.num_items)
        top = [number for number, choice in enumerate(part) if choice.is_top]
        ranked = dict[int, Best | RerankerError](
            zip(top, _tops(scores, part, top, scorer.num_items), strict=True)
        )
        for number, choice in enumerate(part):
            if number not in ranked:
                ranked[number] = _chosen(scores[number : number + 1], choice, scorer.num_items)
        found += [ranked[number] for number in range(len(part))]
    return found


def _quantised(
    scorer: SequenceModel | _Table | _Shared,
    block: scoring.ScoreBlock,
    queries: scoring.Queries,
    choices: Sequence[Choice],
    off: _Off,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The tops of the lists by a copy of the vectors in 8 bits; None where they need all scores."""
    limit = min(max(choice.k for choice in choices), scorer.num_items)
    if not all(choice.is_top and choice.among is None for choice in choices):
        return None
    top = quantised_for(scorer, block, limit, len(queries))
    if top is None:
        return None
    offsets = [_offsets(choice, off, scorer.num_items) for choice in choices]
    if not all(each is None or each.bounded for each in offsets):
        return None
    seen = Seen.of([np.concatenate([*choice.left_out, off.rows[:0]]) for choice in choices])
    with scoring.full_precision(block.device):
        rows, scores = top.of(queries.states, limit, offsets, seen.on(block.device))
    return rows.numpy(), scores.numpy()


def _offsets(choice: Choice, off: _Off, num_items: int) -> Offsets | None:
    """What is added to the scores of all items for a choice; None for nothing."""
    rules = choice.rules
    if rules is None or (rules.boosts is None and rules.allowed is None):
        return off.offsets
    values = torch.zeros(num_items) if rules.boosts is None else torch.tensor(rules.boosts)
    if rules.allowed is not None:
        values[~torch.from_numpy(rules.allowed)] = -torch.inf
    values[torch.from_numpy(off.rows)] = -torch.inf
    return Offsets(values)


def _tops(
    scores: Tensor, choices: Sequence[Choice], numbers: list[int], num_items: int
) -> list[Best]:
    """The top of the list for some of the choices, together."""
    if not numbers:
        return []
    limit = min(max(choices[number].k for number in numbers), num_items)
    some = scores if len(numbers) == len(scores) else scores[numbers]
    rows, best = (each.cpu().numpy() for each in scoring.best(some, limit))
    return _listed(rows, best, [choices[number] for number in numbers])


def _listed(rows: np.ndarray, scores: np.ndarray, choices: Sequence[Choice]) -> list[Best]:
    """What there is of the lists, as long as each is wanted, of rows and scores [n, limit]."""
    found = []
    for listed, values, choice in zip(rows, scores, choices, strict=True):
        kept = listed[: choice.k] >= 0
        found.append((listed[: choice.k][kept], values[: choice.k][kept]))
    return found


def _chosen(scores: Tensor, choice: Choice, num_items: int) -> Best | RerankerError:
    """What limits, diversity and a re-ranker make of the list of one request."""
    assert choice.rules is not None
    lists = BlockLists(scores, range(num_items))
    try:
        return choose(lists, choice.k, num_items, choice.rules.choice, choice.reordering)[0]
    except RerankerError as error:
        # Requests that came together with this one are answered.
        return error


def _restrict(scores: Tensor, choice: Choice, off: np.ndarray, num_items: int) -> None:
    """Add what is to be added, and put -inf in the place of items that may not be recommended."""
    rules, known = choice.rules, scores[:num_items]
    if rules is not None and rules.boosts is not None:
        known += torch.from_numpy(rules.boosts).to(scores.device)
    if rules is not None and rules.allowed is not None:
        known.masked_fill_(~torch.from_numpy(rules.allowed).to(scores.device), -torch.inf)
    if choice.among is not None:
        among = torch.from_numpy(choice.among).to(scores.device)
        kept = scores[among]
        scores.fill_(-torch.inf)
        scores[among] = kept
    left_out = np.concatenate([*choice.left_out, off])
    scores[torch.from_numpy(left_out).to(scores.device)] = -torch.inf
