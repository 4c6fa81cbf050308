"""The best items of users of a log, one part of the users after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from blossomrec.evaluation.top_k import TopK
from blossomrec.models.sequence import SequenceModel
from blossomrec.recommendation.request import Request
from blossomrec.recommendation.user_histories import USERS_AT_ONCE, UserHistories


class Ranked(NamedTuple):
    """N recommendations, by user, then rank; int64 [N] but for the scores.

    Attributes:
        users: rows in the log.
        items: rows in the catalogue of the model.
        scores: float32 [N].
        ranks: from 1 for each user.
        asked: for how many users these are all.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    asked: int

    @staticmethod
    def join(parts: list[Ranked]) -> Ranked:
        """Those of all parts, of which there may be none."""
        empty = np.empty(0, np.int64)
        nothing = empty, empty, np.empty(0, np.float32), empty
        columns = zip(nothing, *(part[:4] for part in parts), strict=True)
        users, items, scores, ranks = map(np.concatenate, columns)
        return Ranked(users, items, scores, ranks, sum(part.asked for part in parts))


class UserRanker:
    """Ranks the catalogue for users of a log; what it takes for that is made once.

    Args:
        model: in evaluation mode, on its device.
        histories: of the users of the log, by the same request.
        at_once: users whom one call may bring at most.
    """

    def __init__(
        self,
        model: SequenceModel,
        histories: UserHistories,
        request: Request,
        *,
        at_once: int = USERS_AT_ONCE,
    ):
        self._request, self._histories = request, histories
        rules = request.rules
        self._top = TopK(
            model,
            request.k,
            min(at_once, USERS_AT_ONCE),
            items=request.items,
            boosts=None if rules is None else rules.boosts,
            choice=None if rules is None else rules.choice,
            device=model.item_embeddings.weight.device,
        )
        self._fallback: tuple[np.ndarray, np.ndarray] | None = None
        if rules is not None and rules.fallback is not None:
            self._fallback = self._top.of_all(rules.fallback)

    def ranked(self, users: np.ndarray) -> Iterator[Ranked]:
        """Recommendations for users, int64 rows of the log, in their order.

        Raises:
            TrainingError: a score is not a number.
        """
        for part in self._histories.parts(users):
            rows = np.full((len(part.users), self._request.k), -1, dtype=np.int64)
            scores = np.full(rows.shape, -np.inf, dtype=np.float32)
            if part.batch is not None:
                rows[part.known], scores[part.known] = self._top.of(part.batch, part.seen)
            if self._fallback is not None:
                rows[~part.known], scores[~part.known] = self._fallback
            found = rows >= 0
            places, ranks = np.nonzero(found)
            users = part.users[places]
            yield Ranked(users, rows[found], scores[found], ranks + 1, len(part.users))
