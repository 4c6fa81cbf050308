"""The best items of users of a log, one part of the users after another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from blossomrec.evaluation.top_k import Reordering, TopK
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.recommendation.request import Request
from blossomrec.recommendation.shared_top_k import SharedTopK
from blossomrec.recommendation.user_histories import USERS_AT_ONCE, Part, UserHistories
from blossomrec.rules.reranking import AskedFor


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
        ranks: who share the items of the model; all make one, and call :meth:`ranked` alike.
    """

    def __init__(
        self,
        model: SequenceModel,
        histories: UserHistories,
        request: Request,
        *,
        at_once: int = USERS_AT_ONCE,
        ranks: Ranks = ALONE,
    ):
        self._request, self._histories, self._ranks = request, histories, ranks
        rules, at_once = request.rules, min(at_once, USERS_AT_ONCE)
        self._top: TopK | SharedTopK
        if ranks.alone:
            self._top = TopK(
                model,
                request.k,
                at_once,
                items=request.items,
                boosts=None if rules is None else rules.boosts,
                choice=None if rules is None else rules.choice,
                device=model.item_embeddings.weight.device,
            )
        else:
            self._top = SharedTopK(model, ranks, request, at_once)
        self._fallback: tuple[np.ndarray, np.ndarray] | None = None
        self._reranking = None if rules is None else rules.reranking
        self._shared = None if rules is None else rules.fallback
        if self._shared is not None and self._reranking is None:
            self._fallback = self._top.of_all(self._shared)

    def ranked(self, users: np.ndarray) -> Iterator[Ranked]:
        """Recommendations for users, int64 rows of the log, in their order.

        Of ranks each has users of its own, or none.

        Raises:
            TrainingError: a score is not a number.
        """
        for part in self._ranks.in_step(self._histories.parts(users)):
            if part is None or part.batch is None:
                best = self._top.of(None)
            else:
                best = self._top.of(part.batch, part.seen, self._reordering(part))
            if part is None:
                continue
            rows = np.full((len(part.users), self._request.k), -1, dtype=np.int64)
            scores = np.full(rows.shape, -np.inf, dtype=np.float32)
            rows[part.known], scores[part.known] = best
            if self._fallback is not None:
                rows[~part.known], scores[~part.known] = self._fallback
            elif self._shared is not None:
                for user in np.flatnonzero(~part.known):
                    rows[user], scores[user] = self._reordered_fallback(part.users[user])
            found = rows >= 0
            places, ranks = np.nonzero(found)
            users = part.users[places]
            yield Ranked(users, rows[found], scores[found], ranks + 1, len(part.users))

    def _reordered_fallback(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """What the re-ranker makes of the fallback for a user of whom no item is known."""
        assert self._shared is not None
        nothing = self._asked(np.array([user]), [np.empty(0, np.int64)])
        return self._top.of_all(self._shared, nothing)

    def _reordering(self, part: Part) -> Reordering | None:
        """What the re-ranker, if there is one, makes of the items for users with a history."""
        if self._reranking is None or part.batch is None:
            return None
        items, ends = part.batch.items.numpy(), part.batch.cu_seqlens.tolist()
        histories = [items[start:stop] for start, stop in pairwise(ends)]
        return self._asked(part.users[part.known], histories)

    def _asked(self, users: np.ndarray, histories: list[np.ndarray]) -> Reordering | None:
        reranking, request = self._reranking, self._request
        if reranking is None:
            return None
        ids = self._histories.user_ids(users)
        kind = self._histories.kind_name(request.kind)
        asked = [
            AskedFor(user, history, request.moment, kind)
            for user, history in zip(ids, histories, strict=True)
        ]
        return Reordering(
            reranking.depth,
            lambda number, rows, scores: reranking.order(rows, scores, request.k, asked[number]),
        )
