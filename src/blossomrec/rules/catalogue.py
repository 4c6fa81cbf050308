"""Rules in the rows of a catalogue: masks and amounts, as ranking takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blossomrec.data.feature_rows import taken_rows
from blossomrec.data.features import FeatureTable
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, DataError, shortened
from blossomrec.models.baselines.base import recent_weights
from blossomrec.rules.choice import Limit, RuledChoice
from blossomrec.rules.item_table import TABLES, ItemTable, read_item_table
from blossomrec.rules.kept_arrays import KeptArrays
from blossomrec.rules.reranking import Reranking, open_reranker
from blossomrec.rules.rules import RuleError, Rules
from blossomrec.rules.tokens import ExpressionError

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.models.sequence import SequenceModel

# Events that are counted at a time.
PIECE_EVENTS = 1 << 21


@dataclass(frozen=True)
class ItemRules:
    """Rules for a catalogue of I items.

    Attributes:
        allowed: which items may be recommended, bool [I]; None for all.
        boosts: what is added to the scores, float32 [I]; None for nothing.
        choice: how items are chosen from the best ones; None for the top of the list.
        exclude_seen_days: see :class:`Rules`.
        fallback: scores for who has no known item, float32 [I]; None for no recommendations.
        reranking: of the best items; None for none.
        given: the rules themselves.
        features: the table of items that they are about; None for none.
    """

    allowed: np.ndarray | None = None
    boosts: np.ndarray | None = None
    choice: RuledChoice | None = None
    exclude_seen_days: float | None = None
    fallback: np.ndarray | None = None
    reranking: Reranking | None = None
    given: Rules = field(default_factory=Rules)
    features: FeatureTable | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What the rules are, JSON-ready; the whole table is read for its digest."""
        used = self.given.filter or self.given.boost or self.given.max_per
        digest = self.features.digest if used and self.features is not None else None
        return self.given.told | {"digest of the item table": digest}

    def joined(self, other: ItemRules) -> ItemRules:
        """These rules and others: filters and limits of both hold and boosts add up.

        Diversity, days and fallback are those of the other ones, the re-ranker is that of these.
        """
        return replace(
            other,
            allowed=_of_both(np.logical_and, self.allowed, other.allowed),
            boosts=_of_both(np.add, self.boosts, other.boosts),
            choice=_joined(self.choice, other.choice),
            reranking=self.reranking,
        )


def _of_both(join: np.ufunc, one: np.ndarray | None, other: np.ndarray | None) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return join(one, other)


def _joined(one: RuledChoice | None, other: RuledChoice | None) -> RuledChoice | None:
    """The limits of both, and the diversity of the other one."""
    limits = one.limits if one is not None else ()
    if other is None:
        return RuledChoice(limits) if limits else None
    return replace(other, limits=limits + other.limits)


class CatalogueRules:
    """Gives rules in the rows of one catalogue; what expressions come to is kept.

    Several threads may ask.

    Args:
        table: of the items of the catalogue.
        vectors: gives of item rows, int64 [n], vectors of length 1, float32 [n, D].
        kept: of the masks and amounts of expressions.

    Example:
        >>> rules = CatalogueRules(table, vectors, KeptArrays(1 << 26))
        >>> rules.of(Rules(filter="price < 20")).allowed.sum()
        3401
    """

    def __init__(
        self,
        table: ItemTable,
        vectors: Callable[[np.ndarray], np.ndarray],
        kept: KeptArrays,
    ):
        self.table, self._vectors, self._kept = table, vectors, kept

    def of(self, rules: Rules) -> ItemRules:
        """Rules in rows, but for ``fallback``, which takes a log.

        Raises:
            RuleError: an expression does not fit the table, or a column is no category.
            ConfigError: the re-ranker cannot be had.
        """
        limits = tuple(self._limit(column, count) for column, count in rules.max_per.items())
        choice = None
        if limits or rules.diversity:
            vectors = self._vectors if rules.diversity else None
            choice = RuledChoice(limits, rules.diversity, vectors)
        return ItemRules(
            allowed=None if rules.filter is None else self._where("filter", rules.filter),
            boosts=self._boosts(rules) if rules.boost else None,
            choice=choice,
            exclude_seen_days=rules.exclude_seen_days,
            reranking=None if rules.reranker is None else self._reranking(rules),
            given=rules,
            features=self.table.features,
        )

    def holds(self, rules: Rules) -> bool:
        """Whether all that their expressions come to is kept."""
        filtered = rules.filter is None or rules.filter in self._kept
        return filtered and (not rules.boost or _key(rules) in self._kept)

    def _where(self, field: str, expression: str) -> np.ndarray:
        try:
            return self._kept.get(expression, lambda: self.table.where(expression))
        except ExpressionError as error:
            raise RuleError.of_expression(field, expression, error) from error

    def _boosts(self, rules: Rules) -> np.ndarray:
        def added() -> np.ndarray:
            boosts = np.zeros(self.table.items.size, np.float32)
            for place, (expression, amount) in enumerate(rules.boost):
                boosts[self._where(f"boost[{place}]", expression)] += np.float32(amount)
            return boosts

        return self._kept.get(_key(rules), added)

    def _limit(self, column: str, count: int) -> Limit:
        categories = self.table.categories(column)
        if categories is None:
            columns = (name for name in self.table.names if self.table.categories(name) is not None)
            there = ", ".join(columns) or "none"
            if self.table.features is None:
                there = f"none, since the items have no table; {TABLES}"
            field = f"max_per[{shortened(column)}]"
            what = f"no column of categories has this name; there are {there}"
            raise RuleError(f"{field}: {what}", field, column)
        return Limit(categories, min(count, self.table.items.size))

    def _reranking(self, rules: Rules) -> Reranking:
        assert rules.reranker is not None
        ids = self.table.items.ids
        return Reranking(
            rules.reranker,
            open_reranker(rules.reranker),
            rules.rerank_depth,
            lambda rows: ids(rows).to_list(),
        )


def _key(rules: Rules) -> tuple[tuple[str, float], ...]:
    return tuple((expression, float(amount)) for expression, amount in rules.boost)


def item_rules(
    rules: Rules,
    model: SequenceModel,
    items: Vocabulary,
    log: EventLog | None,
    kept: FeatureTable | None,
) -> ItemRules:
    """Rules for the catalogue of a model.

    Args:
        items: the catalogue.
        log: whose table of items and whose events count; None for none.
        kept: the table of items that is kept with the model; None for none. Rules that bring a
            table go by that, and a log that has one goes before what is kept: prices and stocks
            are then those of the day.

    Raises:
        ConfigError: an expression does not fit the table, or a column is no category; the fallback
            is to be counted and there is no log.
        DataError: the filter leaves no item, or a table cannot be read.
    """
    table = ItemTable(items, item_features(rules.items, items, log, kept))
    vectors = directions(model) if rules.diversity else _no_vectors
    # Asked once: what is kept is in use anyway.
    found = CatalogueRules(table, vectors, KeptArrays(0)).of(rules)
    refuse_nothing(rules, found)
    if rules.fallback == "none":
        return found
    if log is None:
        raise ConfigError(
            f"fallback is {rules.fallback!r}: it is counted in a log, and there is none"
        )
    return replace(found, fallback=recent_shares(log, items))


def item_features(
    given: Any, items: Vocabulary, log: EventLog | None, kept: FeatureTable | None
) -> FeatureTable | None:
    """The table of items that expressions are about, in the rows of a catalogue; None for none.

    Args:
        given: a table, or where one lies, that goes before all others; None for none.
        log: whose table goes before what is ``kept`` with the model.

    Raises:
        DataError: the table that is given cannot be read.
    """
    if given is not None:
        return read_item_table(given, items)
    if log is None or log.item_features is None:
        return kept
    if log.item_vocabulary.fingerprint == items.fingerprint:
        return log.item_features
    return taken_rows([log.item_features], log.item_vocabulary.rows_of(items))


def refuse_nothing(rules: Rules, found: ItemRules) -> None:
    """Raise DataError where a filter leaves no item."""
    if found.allowed is not None and not found.allowed.any():
        raise DataError(f"filter {rules.filter!r} leaves no item")


def directions(model: SequenceModel) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the vectors of items, of length 1: float32 [n, D]."""
    with torch.no_grad():
        table = model.output_weight().detach()

    def of(rows: np.ndarray) -> np.ndarray:
        vectors = table[torch.from_numpy(rows).to(table.device)].float()
        return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()

    return of


def _no_vectors(rows: np.ndarray) -> np.ndarray:
    raise AssertionError("only diversity asks for vectors")


def recent_shares(log: EventLog, items: Vocabulary) -> np.ndarray:
    """Logarithms of the shares of items in the events of a log, late ones first: float32 [I]."""
    first, last = log.summary["time"]["first"], log.summary["time"]["last"]
    counts = np.zeros(items.size)
    log_items = items.rows_of(log.item_vocabulary)
    for start in range(0, log.num_events, PIECE_EVENTS):
        piece = slice(start, start + PIECE_EVENTS)
        rows = log_items[log.items[piece]]
        weights = recent_weights(log.timestamps[piece], first, last)
        known = rows >= 0
        counts += np.bincount(rows[known], weights[known], minlength=items.size)
    # Nobody has no share at all: k items are found where k are allowed.
    return np.log((counts + 1) / (counts.sum() + items.size)).astype(np.float32)
