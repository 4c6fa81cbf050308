"""Rules of one version of a model: those that always hold, and those that requests bring."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.features import FeatureTable
from blossomrec.data.log import EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError
from blossomrec.rules import Rules
from blossomrec.rules.catalogue import (
    CatalogueRules,
    ItemRules,
    item_features,
    recent_shares,
    refuse_nothing,
)
from blossomrec.rules.item_table import ItemTable
from blossomrec.rules.kept_arrays import KeptArrays
from blossomrec.rules.rules import RuleError, refuse_contradiction
from blossomrec.serving.refusals import Refusal, unavailable, without_folders

# Of these a request has its own, or those of the server.
ONE_OF_BOTH = ("diversity", "exclude_seen_days", "fallback")
# Requests with expressions that are new, which may wait.
MOST_WAITING = 64


@dataclass(frozen=True)
class RuleSource:
    """Of what the rules of a version are made.

    Attributes:
        items: the catalogue.
        kept: the table of items that is kept with the model; None for none.
        log: folder of the log that the model was trained on, which may be gone.
        vectors: gives of item rows vectors of length 1, float32 [n, D].
        budget: bytes for what expressions come to.
    """

    items: Vocabulary
    kept: FeatureTable | None
    log: Path
    vectors: Callable[[np.ndarray], np.ndarray]
    budget: int


class ServedRules:
    """Gives the rules of requests in the rows of one version's catalogue.

    Args:
        always: what holds for every request. Its table of items goes before that of the log, and
            that of the log before what is kept with the model.

    Raises:
        ConfigError: ``always`` does not fit the table.
        DataError: its filter leaves no item, or its table cannot be read.
    """

    def __init__(self, source: RuleSource, always: Rules):
        self._source, self._given = source, always
        self._shares: np.ndarray | None = None
        self._lock = threading.Lock()
        log = None
        if always.items is None:
            # Open no longer than needed: who is forgotten must be able to leave the disk.
            with contextlib.suppress(DataError):
                log = EventLog.open(source.log)
        features = item_features(always.items, source.items, log, source.kept)
        kept = KeptArrays(source.budget)
        telling = CatalogueRules(ItemTable(source.items, features), source.vectors, kept)
        self._always = telling.of(always)
        refuse_nothing(always, self._always)
        if always.fallback != "none":
            self._always = replace(self._always, fallback=self._recent())
        # What clients write is told to them alone.
        quiet = ItemTable(source.items, features, warns=False)
        self._rules = CatalogueRules(quiet, source.vectors, kept)
        self._nothing = always == Rules(items=always.items)

    @property
    def always(self) -> ItemRules | None:
        """What holds for a request that says nothing; None for nothing."""
        return None if self._nothing else self._always

    @property
    def columns(self) -> list[str]:
        """Names that expressions may have."""
        return self._rules.table.names

    def asked(self, given: Mapping[str, Any], filter_viewed: bool | None) -> Rules:
        """The rules of a request, by name, checked but for the table of items.

        Args:
            given: some of ``RULES``.
            filter_viewed: as the request says; a choice of its own goes before the days of the
                server.

        Raises:
            RuleError: one is wrong, or does not go with ``filter_viewed``.
        """
        refuse_contradiction(filter_viewed, given.get("exclude_seen_days"))
        ours = {name: getattr(self._given, name) for name in ONE_OF_BOTH}
        if filter_viewed is not None:
            ours["exclude_seen_days"] = None
        return Rules(**ours | dict(given))

    def at_hand(self, rules: Rules) -> bool:
        """Whether rules are given without much work."""
        shares = rules.fallback == "none" or self._shares is not None
        return shares and self._rules.holds(rules)

    def of(self, rules: Rules) -> ItemRules:
        """Rules of a request, with those that always hold.

        Raises:
            RuleError: they do not fit the table of items, or there is no log for the fallback.
        """
        found = self._rules.of(rules)
        if rules.fallback != "none":
            found = replace(found, fallback=self._recent())
        return self._always.joined(found)

    def _recent(self) -> np.ndarray:
        """Scores for who has no known item, counted when they are first needed."""
        with self._lock:
            if self._shares is None:
                try:
                    log = EventLog.open(self._source.log)
                except DataError as error:
                    why = without_folders(str(error), self._source.log)
                    message = f"the log this model was trained on is not there ({why})"
                    name = "fallback"
                    raise RuleError(f"{name}: {message}", name, "recent-popularity") from error
                self._shares = recent_shares(log, self._source.items)
            return self._shares


class RuleReader:
    """Works out rules in a thread of its own, so that no other request waits for that.

    One thread (that of the event loop) asks.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "rules")
        self._open: set[Future[Any]] = set()

    def read(self, version: ServedRules, rules: Rules) -> Future[ItemRules]:
        """What rules are in the rows of a version.

        Raises:
            Refusal: 503, too many wait. The future's: see :meth:`ServedRules.of`.
        """
        self._open = {future for future in self._open if not future.done()}
        if len(self._open) >= MOST_WAITING:
            raise unavailable("overloaded", f"{MOST_WAITING} requests with new rules are waiting")
        future = self._pool.submit(version.of, rules)
        self._open.add(future)
        return future

    def close(self) -> None:
        """Finish what has been accepted, then give back the thread."""
        self._pool.shutdown()


def wrong_rule(error: RuleError) -> Refusal:
    """What a request with a wrong rule is answered, in the words of the library."""
    where: dict[str, Any] = {"field": error.field, "value": error.value, "place": error.place}
    return Refusal(422, "invalid", str(error), **where)
