"""What somebody decides about recommendations beside the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from blossomrec.errors import ConfigError, one_of, shortened, whole_number
from blossomrec.rules.expression import parse
from blossomrec.rules.tokens import ExpressionError

Fallback = Literal["none", "recent-popularity"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which items may be recommended, and in which order; the defaults change nothing.

    Expressions are over the columns of the table of items, such as
    ``category in ("a", "b") and price < 20 and not sold_out``.

    Attributes:
        filter: an expression; only items that it is true of are recommended, k of them where there
            are k.
        boosts: pairs of an expression and an amount, which is added to the score of the items that
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
        items: table of items that expressions are about, a path or a frame with the column
            ``item_id``; None is that of the log, or else the one kept with the model.

    Raises:
        ConfigError: an expression is none, or a value is out of bounds.

    Example:
        >>> rules = Rules(filter="not sold_out", boosts=[("price < 20", 0.5)], max_per={"brand": 2})
        >>> recommender.recommend([42], rules=rules)
    """

    filter: str | None = None
    boosts: Sequence[tuple[str, float]] = ()
    max_per: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0
    exclude_seen_days: float | None = None
    fallback: Fallback = "none"
    items: Any = None

    def __post_init__(self) -> None:
        if self.filter is not None:
            check_expression("filter", self.filter)
        for place, pair in enumerate(self.boosts):
            name = f"boosts[{place}]"
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ConfigError(f"{name} is {shortened(pair)}: (expression, amount) is needed")
            check_expression(name, pair[0])
            _number(name, pair[1])
        if not isinstance(self.max_per, Mapping):
            raise ConfigError(f"max_per is {shortened(self.max_per)}: limits by column are needed")
        for column, limit in self.max_per.items():
            whole_number(f"max_per[{column!r}]", limit)
        if not 0 <= _number("diversity", self.diversity) < 1:
            raise ConfigError(f"diversity is {self.diversity}: it must be from 0 to under 1")
        days = self.exclude_seen_days
        if days is not None and not _number("exclude_seen_days", days) > 0:
            raise ConfigError(f"exclude_seen_days is {days}: it must be over 0")
        one_of("fallback", self.fallback, get_args(Fallback))

    @property
    def told(self) -> dict[str, Any]:
        """What they say, JSON-ready, but for the table of items."""
        return {
            "filter": self.filter,
            "boosts": [[expression, float(amount)] for expression, amount in self.boosts],
            "max_per": dict(self.max_per),
            "diversity": float(self.diversity),
            "exclude_seen_days": self.exclude_seen_days,
            "fallback": self.fallback,
        }


def check_expression(name: str, text: Any) -> None:
    """Raise ConfigError, naming the option, where a text is no expression."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} is {shortened(text)}: an expression is needed")
    try:
        parse(text)
    except ExpressionError as error:
        raise ConfigError(f"{name}: {error}") from error


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} is {shortened(value)}: a finite number is needed")
    return float(value)
