"""Lists of items: what the model ranks, and what a fallback has where nothing is known."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from blossomrec.rules.catalogue import ItemRules
from blossomrec.rules.reranking import AskedFor
from blossomrec.rules.rules import RuleError
from blossomrec.serving.engine.engine import Engine
from blossomrec.serving.engine.jobs import Request
from blossomrec.serving.engine.work import answered
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores.store import ItemId
from blossomrec.serving.version.ranking import Best
from blossomrec.serving.version.served_rules import RuleReader, wrong_rule
from blossomrec.serving.version.version import ModelVersion
from blossomrec.serving.watch.watch import Watch

T = TypeVar("T")
Listed = list[tuple[ItemId, float]]
# Codes of refusals of a user of whom no item is known, and what is counted as their history.
NOTHING_KNOWN = {"unknown_user": "none", "no_known_item": "unknown_items"}


class Listing:
    """Makes lists by the engine, and tells the watch of them.

    Args:
        timeout: seconds that a request waits.
    """

    def __init__(self, engine: Engine, metrics: Metrics, watch: Watch, timeout: float):
        self._engine, self._metrics, self._watch = engine, metrics, watch
        self._timeout, self._rule_reader = timeout, RuleReader()

    async def rules(
        self, version: ModelVersion, given: Mapping[str, Any], filter_viewed: bool | None
    ) -> ItemRules | None:
        """The rules of a request and of the server; None for none.

        Raises:
            Refusal: 422, one is wrong or does not fit the table of items.
        """
        served = version.rules
        if not given and (filter_viewed is None or served.always is None):
            return served.always
        try:
            rules = served.asked(given, filter_viewed)
            if served.at_hand(rules):
                return served.of(rules)
            return await self._waited(self._rule_reader.read(served, rules))
        except RuleError as error:
            raise wrong_rule(error) from error

    async def of(self, version: ModelVersion, request: Request) -> Listed:
        """The best items; by the fallback, if there is one, where nothing is known of the user."""
        try:
            best = await self._waited(self._engine.recommend(version, request))
        except Refusal as refusal:
            if refusal.code in NOTHING_KNOWN:
                self._metrics.asked.labels(NOTHING_KNOWN[refusal.code]).inc()
            if not falls_back(request.choice.rules, refusal):
                raise
            return await self.by_fallback(version, request)
        listed = named(version, best)
        self._watch.recommended(version, request.user, listed)
        return listed

    async def by_fallback(self, version: ModelVersion, request: Request) -> Listed:
        """What the fallback, which there is, has for anybody."""
        ruled = request.choice.rules
        assert ruled is not None and ruled.fallback is not None
        scores, nothing = ruled.fallback, np.empty(0, np.int64)
        kind = version.known.fields.kinds[request.kind - 1] if request.kind else None
        asked = AskedFor(request.user, nothing, request.at, kind)
        choice = replace(request.choice, asked=asked)
        ranked = self._engine.call(lambda: version.ranking.best_of(scores, choice))
        listed = named(version, await self._waited(ranked))
        self._watch.fell_back(version)
        return listed

    def close(self) -> None:
        """Finish what has been accepted, then give back the thread of the rules."""
        self._rule_reader.close()

    async def _waited(self, future: Future[T]) -> T:
        return await answered(future, self._timeout)


def falls_back(rules: ItemRules | None, refusal: Refusal) -> bool:
    """Whether there is a fallback for a user or history that was refused."""
    return rules is not None and rules.fallback is not None and refusal.code in NOTHING_KNOWN


def named(version: ModelVersion, best: Best) -> Listed:
    """Items by their external ids, with their scores."""
    rows, scores = best
    pairs = zip(rows.tolist(), scores.tolist(), strict=True)
    return [(version.catalogue.id(row), score) for row, score in pairs]
