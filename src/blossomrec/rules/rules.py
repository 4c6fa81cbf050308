"""What somebody decides about recommendations beside the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

from blossomrec.errors import ConfigError, one_of, shortened, whole_number
from blossomrec.registry import RERANKERS
from blossomrec.rules.expression import parse
from blossomrec.rules.tokens import ExpressionError

Fallback = Literal["none", "recent-popularity"]
# Sums of many such amounts are finite in 32 bits.
LARGEST_BOOST = 1e30


class RuleError(ConfigError):
    """A rule is none, or does not fit the table of items.

    Attributes:
        field: which one, such as ``boost[0]``.
        value: what stands there.
        place: number of the character of an expression at which that shows, from 1; None where it
            is about no character.
    """

    def __init__(self, message: str, field: str, value: Any, place: int | None = None):
        super().__init__(message)
        self.field, self.value, self.place = field, value, place

    # Exceptions are pickled by what their base class was given.
    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (str(self), self.field, self.value, self.place)

    @classmethod
    def of_expression(cls, field: str, text: str, error: ExpressionError) -> RuleError:
        """What is wrong with the expression of a rule."""
        return cls(f"{field}: {error}", field, text, error.place)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which items may be recommended, and in which order; the defaults change nothing.

    Expressions are over the columns of the table of items, such as
    ``category in ("a", "b") and price < 20 and not sold_out``.

    Attributes:
        filter: an expression; only items that it is true of are recommended, k of them where there
            are k.
        boost: pairs of an expression and an amount, which is added to the score of the items that
            it is true of.
        max_per: at most so many items with each value of a column of categories, such as
            ``{"brand": 2}``; items are taken in order of score, from as deep as needed.
        diversity: from 0 to under 1, one minus lambda of maximal marginal relevance (Carbonell and
            Goldstein, 1998): each next item has the highest lambda times relevance minus
            ``diversity`` times the largest cosine of its vector with those chosen before it.
            Relevance is the score, brought to 0 to 1 over the 10 k best items, or more of them
            where k cannot be chosen from those.
        exclude_seen_days: leave out what the user had in the last so many days, before the moment
            for which is recommended; what is older may come again.
        fallback: what users get of whom no item is known: nothing, or what was popular of late.
            Scores are then logarithms of shares, an event counting half after a tenth of the time
            span of the log.
        reranker: name of a registered re-ranker, which gives the best items by the rules above a
            new order; limits and ``diversity`` then choose from what it gives. See
            :class:`blossomrec.rules.reranking.Candidates`. None for none.
        rerank_depth: of how many items it gets the best, k if that is more.
        items: table of items that expressions are about, a path or a frame with the column
            ``item_id``; None is that of the log, or else the one kept with the model.

    Raises:
        RuleError: an expression is none, or a value is out of bounds.

    Example:
        >>> rules = Rules(filter="not sold_out", boost=[("price < 20", 0.5)], max_per={"brand": 2})
        >>> recommender.recommend([42], rules=rules)
    """

    filter: str | None = None
    boost: Sequence[tuple[str, float]] = ()
    max_per: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0
    exclude_seen_days: float | None = None
    fallback: Fallback = "none"
    reranker: str | None = None
    rerank_depth: int = 100
    items: Any = None

    def __post_init__(self) -> None:
        if self.filter is not None:
            check_expression("filter", self.filter)
        if isinstance(self.boost, str) or not isinstance(self.boost, Sequence):
            _refuse("boost", self.boost, "pairs of an expression and an amount are needed")
        for place, pair in enumerate(self.boost):
            name = f"boost[{place}]"
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                _refuse(name, pair, "(expression, amount) is needed")
            check_expression(name, pair[0])
            if abs(_number(name, pair[1])) > LARGEST_BOOST:
                _refuse(name, pair[1], f"it must be from -{LARGEST_BOOST:g} to {LARGEST_BOOST:g}")
        if not isinstance(self.max_per, Mapping):
            _refuse("max_per", self.max_per, "limits by column are needed")
        for column, limit in self.max_per.items():
            _checked(f"max_per[{shortened(column)}]", limit, whole_number)
        if not 0 <= _number("diversity", self.diversity) < 1:
            _refuse("diversity", self.diversity, "it must be from 0 to under 1")
        days = self.exclude_seen_days
        if days is not None and not _number("exclude_seen_days", days) > 0:
            _refuse("exclude_seen_days", days, "it must be over 0")
        _checked("fallback", self.fallback, one_of, get_args(Fallback))
        if self.reranker is not None:
            _checked("reranker", self.reranker, RERANKERS.check)
        _checked("rerank_depth", self.rerank_depth, whole_number)

    @property
    def told(self) -> dict[str, Any]:
        """What they say, JSON-ready, but for the table of items."""
        return {
            "filter": self.filter,
            "boost": [[expression, float(amount)] for expression, amount in self.boost],
            "max_per": dict(self.max_per),
            "diversity": float(self.diversity),
            "exclude_seen_days": self.exclude_seen_days,
            "fallback": self.fallback,
            "reranker": self.reranker,
            "rerank_depth": None if self.reranker is None else self.rerank_depth,
        }


def refuse_contradiction(filter_viewed: bool | None, days: float | None) -> None:
    """Raise RuleError where a request says of viewed items both which days count and all or none.

    Args:
        filter_viewed: as the request says it; None where it does not.
        days: its ``exclude_seen_days``.
    """
    if days is None or filter_viewed is None:
        return
    does = "lets older ones come again" if filter_viewed else "leaves viewed items out"
    message = f"filter_viewed is {filter_viewed}, but exclude_seen_days {does}: give one of them"
    raise RuleError(message, "filter_viewed", filter_viewed)


def check_expression(name: str, text: Any) -> None:
    """Raise RuleError, naming the option, where a text is no expression."""
    if not isinstance(text, str):
        _refuse(name, text, "an expression is needed")
    try:
        parse(text)
    except ExpressionError as error:
        raise RuleError.of_expression(name, text, error) from error


def _number(name: str, value: Any) -> float:
    wrong = isinstance(value, bool) or not isinstance(value, (int, float))
    # Comparing, unlike converting, takes whole numbers of any size.
    if wrong or not abs(value) <= sys.float_info.max:
        _refuse(name, value, "a finite number is needed")
    return float(value)


def _refuse(name: str, value: Any, what: str) -> NoReturn:
    raise RuleError(f"{name} is {shortened(value)}: {what}", name, value)


def _checked(name: str, value: Any, check: Callable[..., Any], *options: Any) -> None:
    """Raise RuleError where a check of a value raises ConfigError."""
    try:
        check(name, value, *options)
    except ConfigError as error:
        raise RuleError(str(error), name, value) from error
