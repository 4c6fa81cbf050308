"""Rules in the rows of a catalogue: masks and amounts, as ranking takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blossomrec.data.feature_rows import taken_rows
from blossomrec.data.features import FeatureTable
from blossomrec.data.history import known_ids
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, DataError
from blossomrec.models.baselines.base import recent_weights
from blossomrec.rules.choice import Limit, RuledChoice
from blossomrec.rules.item_table import ItemTable, read_item_table
from blossomrec.rules.rules import Rules
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
        allowed: the only item rows that may be recommended, int64, rising; None for all.
        boosts: what is added to the scores, float32 [I]; None for nothing.
        choice: how items are chosen from the best ones; None for the top of the list.
        exclude_seen_days: see :class:`Rules`.
        fallback: scores for who has no known item, float32 [I]; None for no recommendations.
        told: what the rules are, JSON-ready.
    """

    allowed: np.ndarray | None
    boosts: np.ndarray | None
    choice: RuledChoice | None
    exclude_seen_days: float | None
    fallback: np.ndarray | None
    told: dict[str, Any]


def item_rules(
    rules: Rules,
    model: SequenceModel,
    items: Vocabulary,
    log: EventLog,
    kept: FeatureTable | None,
) -> ItemRules:
    """Rules for the catalogue of a model and the users of a log.

    Args:
        items: the catalogue.
        kept: the table of items that is kept with the model; None for none. Rules that bring a
            table go by that, and a log that has one goes before what is kept: prices and stocks
            are then those of the day.

    Raises:
        ConfigError: an expression does not fit the table, or a column is no category; days are to
            count and the log has no times.
        DataError: the filter leaves no item, or a table cannot be read.
    """
    if rules.exclude_seen_days is not None and not log.has_times:
        raise ConfigError(
            f"exclude_seen_days is {rules.exclude_seen_days}: the times of {log.folder} only tell "
            "an order"
        )
    table = ItemTable(items, _features(rules, items, log, kept))
    limits = tuple(_limit(table, column, count) for column, count in rules.max_per.items())
    digest = None
    if table.features is not None and (rules.filter or rules.boosts or limits):
        digest = table.features.digest
    choice = None
    if limits or rules.diversity:
        choice = RuledChoice(
            limits, rules.diversity, _directions(model) if rules.diversity else None
        )
    return ItemRules(
        allowed=_allowed(rules, table),
        boosts=_boosts(rules, table, model.num_items),
        choice=choice,
        exclude_seen_days=rules.exclude_seen_days,
        fallback=None if rules.fallback == "none" else _recent(log, items),
        told=rules.told | {"digest of the item table": digest},
    )


def _features(
    rules: Rules, items: Vocabulary, log: EventLog, kept: FeatureTable | None
) -> FeatureTable | None:
    if rules.items is not None:
        return read_item_table(rules.items, items)
    if log.item_features is None:
        return kept
    if log.item_vocabulary.fingerprint == items.fingerprint:
        return log.item_features
    return taken_rows([log.item_features], known_ids(log.item_vocabulary, items))


def _allowed(rules: Rules, table: ItemTable) -> np.ndarray | None:
    if rules.filter is None:
        return None
    found = np.flatnonzero(_where(table, "filter", rules.filter))
    if not len(found):
        raise DataError(f"filter {rules.filter!r} leaves no item")
    return found


def _boosts(rules: Rules, table: ItemTable, num_items: int) -> np.ndarray | None:
    if not rules.boosts:
        return None
    boosts = np.zeros(num_items, np.float32)
    for place, (expression, amount) in enumerate(rules.boosts):
        boosts[_where(table, f"boosts[{place}]", expression)] += np.float32(amount)
    return boosts


def _where(table: ItemTable, name: str, expression: str) -> np.ndarray:
    try:
        return table.where(expression)
    except ExpressionError as error:
        raise ConfigError(f"{name}: {error}") from error


def _limit(table: ItemTable, column: str, count: int) -> Limit:
    categories = table.categories(column)
    if categories is None:
        there = [name for name in table.names if table.categories(name) is not None]
        raise ConfigError(
            f"max_per[{column!r}]: no column of categories has this name; there are "
            + (", ".join(there) or "none")
        )
    return Limit(categories, count)


def _directions(model: SequenceModel) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the vectors of items, of length 1: float32 [n, D]."""
    with torch.no_grad():
        table = model.output_weight().detach()

    def directions(rows: np.ndarray) -> np.ndarray:
        vectors = table[torch.from_numpy(rows).to(table.device)].float()
        return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()

    return directions


def _recent(log: EventLog, items: Vocabulary) -> np.ndarray:
    """Logarithms of the shares of items in the events of a log, late ones first: float32 [I]."""
    first, last = log.summary["time"]["first"], log.summary["time"]["last"]
    counts = np.zeros(items.size)
    log_items = known_ids(items, log.item_vocabulary)
    for start in range(0, log.num_events, PIECE_EVENTS):
        piece = slice(start, start + PIECE_EVENTS)
        rows = log_items[log.items[piece]]
        weights = recent_weights(log.timestamps[piece], first, last)
        known = rows >= 0
        counts += np.bincount(rows[known], weights[known], minlength=items.size)
    # Nobody has no share at all: k items are found where k are allowed.
    return np.log((counts + 1) / (counts.sum() + items.size)).astype(np.float32)
