"""The best items for encoded histories, each with its own items to leave out or to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from blossomrec.evaluation import scoring
from blossomrec.models.sequence import SequenceModel


@dataclass(frozen=True)
class Choice:
    """Which items may be recommended.

    Attributes:
        k: how many.
        left_out: item rows that may not, arrays of int64.
        among: the only item rows that may; None for the whole catalogue.
    """

    k: int
    left_out: list[np.ndarray] = field(default_factory=list)
    among: np.ndarray | None = None


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
        self._off = np.empty(0, np.int64)
        self._table: Tensor | None = None

    def switch_off(self, rows: np.ndarray) -> None:
        """From now on recommend none of these items, and all others."""
        self._off = rows

    def best(self, queries: scoring.Queries, choices: Sequence[Choice]) -> list[Best]:
        """The best items for each of the queries; fewer where fewer are allowed.

        Raises:
            TrainingError: a score is not a number.
        """
        return _best(self._model, queries, choices, self._off, self._device)

    def similar(self, rows: np.ndarray, k: int) -> list[Best]:
        """The items whose embeddings are closest by cosine to each of ``rows``, itself left out."""
        if self._table is None:
            self._table = normalize(self._model.output_weight().float(), dim=-1)
        choices = [Choice(k, [row]) for row in rows[:, None]]
        queries = scoring.Queries(self._table[torch.from_numpy(rows).to(self._device)])
        return _best(_Table(self._table), queries, choices, self._off, self._device)


class _Table:
    """Scores by product with the rows of a table."""

    def __init__(self, table: Tensor):
        self.num_items, self._table = len(table), table

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        return queries @ self._table[start:stop].T


def _best(
    scorer: SequenceModel | _Table,
    queries: scoring.Queries,
    choices: Sequence[Choice],
    off: np.ndarray,
    device: torch.device,
) -> list[Best]:
    block = scoring.ScoreBlock(
        scorer, len(queries), device=device, score_elements=scoring.SCORE_ELEMENTS
    )
    found = []
    for start in range(0, len(queries), block.rows):
        part = choices[start : start + block.rows]
        with scoring.full_precision(device):
            scores = block.fill(queries.part(start, start + block.rows))
        for row, choice in zip(scores, part, strict=True):
            _restrict(row, choice, off)
        limit = min(max(choice.k for choice in part), scorer.num_items)
        best = (each.cpu().numpy() for each in scoring.best(scores, limit))
        for rows, values, choice in zip(*best, part, strict=True):
            kept = rows[: choice.k] >= 0
            found.append((rows[: choice.k][kept], values[: choice.k][kept]))
    return found


def _restrict(scores: Tensor, choice: Choice, off: np.ndarray) -> None:
    """Put -inf in the place of items that may not be recommended."""
    if choice.among is not None:
        among = torch.from_numpy(choice.among).to(scores.device)
        kept = scores[among]
        scores.fill_(-torch.inf)
        scores[among] = kept
    left_out = np.concatenate([*choice.left_out, off])
    scores[torch.from_numpy(left_out).to(scores.device)] = -torch.inf
