"""Re-ranking: the best items of a request are given a new order by a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from blossomrec.errors import RerankerError, shortened
from blossomrec.registry import RERANKERS

ItemId = int | str


@dataclass(frozen=True)
class AskedFor:
    """For whom and what a list is made.

    Attributes:
        user: id; None where a history came with the request.
        history: rows of the items of the history, oldest first, as far as the model sees them or
            further; empty where none is known.
        at: the second since 1970 for which is recommended; -1 where it is not known.
        kind: of the event that is wanted; None for any.
    """

    user: ItemId | None
    history: np.ndarray
    at: int = -1
    kind: str | None = None


@dataclass(frozen=True)
class Candidates:
    """What a re-ranker is given: the best items that may be recommended, and for whom.

    Attributes:
        items: external ids, best first.
        scores: of the items, float32 [n], boosts included.
        k: how many of them are recommended at the end.
        user: external id; None where a history came with the request.
        at: the second since 1970 for which is recommended; -1 where it is not known.
        kind: of the event that is wanted; None for any.
    """

    items: list[ItemId]
    scores: np.ndarray
    k: int
    user: ItemId | None = None
    at: int = -1
    kind: str | None = None
    _history: Callable[[], list[ItemId]] = field(default=list, repr=False)

    @property
    def history(self) -> list[ItemId]:
        """External ids of the items of the history, oldest first; made when it is asked for."""
        return self._history()


class Reranker(Protocol):
    """A function of candidates; one thread calls it, for one request at a time."""

    def __call__(self, candidates: Candidates) -> Iterable[tuple[ItemId, float]]:
        """Items and their new scores in the order in which they are recommended.

        Each is a candidate and is given once; what is left out is not recommended. Scores are any
        finite numbers and need not fall: the order is that of the items.
        """
        ...


@dataclass(frozen=True)
class Reranking:
    """A re-ranker in the rows of a catalogue.

    Attributes:
        name: of the re-ranker.
        rerank: the function.
        depth: how many of the best items it gets, or k if that is more.
        ids: gives external ids of item rows, int64 [n].
    """

    name: str
    rerank: Reranker
    depth: int
    ids: Callable[[np.ndarray], list[ItemId]]

    def order(
        self, rows: np.ndarray, scores: np.ndarray, k: int, asked: AskedFor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores in the new order, int64 and float32 [m].

        Raises:
            RerankerError: the re-ranker failed, or gave something else than candidates.
        """
        items = self.ids(rows)
        candidates = Candidates(
            items, scores, k, asked.user, asked.at, asked.kind, lambda: self.ids(asked.history)
        )
        try:
            given = list(self.rerank(candidates))
        except Exception as error:
            reason = " ".join(str(error).split())
            what = f"failed{_whom(asked)}: {type(error).__name__}: {reason}"
            raise RerankerError(f"reranker {self.name!r} {what}") from error
        places, values = self._checked(items, given, asked)
        return rows[places], np.array(values, np.float32)

    def _checked(
        self, items: Sequence[ItemId], given: Sequence[Any], asked: AskedFor
    ) -> tuple[list[int], list[float]]:
        """Where among the candidates the items stand, and their scores."""
        places, values = list[int](), list[float]()
        left = {item: place for place, item in enumerate(items)}
        for number, one in enumerate(given):
            wrong = f"reranker {self.name!r} gave {shortened(one)} at {number}{_whom(asked)}: "
            if not isinstance(one, (tuple, list)) or len(one) != 2:
                raise RerankerError(f"{wrong}an item and its score are needed")
            item, score = _plain(one[0]), one[1]
            if not isinstance(item, (int, str)) or item not in left:
                known = item in items
                why = "it was given before" if known else f"it is none of the {len(items)} items"
                raise RerankerError(wrong + why)
            if not _is_score(score):
                raise RerankerError(f"{wrong}a score is a finite number")
            places.append(left.pop(item))
            values.append(float(score))
        return places, values


def open_reranker(name: str) -> Reranker:
    """The re-ranker of a name; where that is a class, a new object of it.

    Raises:
        ConfigError: there is no such name, or it cannot be imported.
        RerankerError: the class cannot be made an object of.
    """
    found: Any = RERANKERS.get(name)
    if not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RerankerError(
            f"reranker {name!r} cannot be made: {type(error).__name__}: {reason}"
        ) from error


def _whom(asked: AskedFor) -> str:
    return "" if asked.user is None else f" for user {shortened(asked.user)}"


def _plain(value: Any) -> Any:
    """A scalar of NumPy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _is_score(value: Any) -> bool:
    """Whether it is a number that is finite in 32 bits, as NaN is not."""
    numbers = (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, numbers):
        return False
    return bool(abs(value) <= float(np.finfo(np.float32).max))
