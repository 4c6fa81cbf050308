"""Everything a server can do, without HTTP: events, recommendations, model versions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from blossomrec.config import ServingConfig
from blossomrec.data.history import History
from blossomrec.data.units import Time, as_second, as_seconds
from blossomrec.errors import ConfigError
from blossomrec.rules import Rules
from blossomrec.rules.catalogue import ItemRules
from blossomrec.rules.reranking import AskedFor
from blossomrec.rules.rules import RuleError
from blossomrec.serving.engine.engine import Engine, Request
from blossomrec.serving.engine.explainer import Explainer, check_model
from blossomrec.serving.engine.ranking import Best, Choice
from blossomrec.serving.engine.served_rules import RuleReader, wrong_rule
from blossomrec.serving.engine.store_threads import Committer, Reader
from blossomrec.serving.engine.version import ModelVersion, load_version
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import (
    Refusal,
    nothing_known,
    unavailable,
    unknown_item,
    unknown_user,
)
from blossomrec.serving.stores.store import (
    Appended,
    Context,
    Event,
    EventStore,
    ItemId,
    Member,
    Profile,
)
from blossomrec.serving.watch.watch import Watch, stored_events

T = TypeVar("T")
SECONDS_A_DAY = 86_400
# Codes of refusals of a user of whom no item is known, and what is counted as their history.
NOTHING_KNOWN = {"unknown_user": "none", "no_known_item": "unknown_items"}
# How long one look at the store counts: whoever may ask may ask often.
LOOK_SECONDS = 1.0
# How long the end waits for the counting of what the store holds.
COUNTING_SECONDS = 1.0

logger = logging.getLogger("blossomrec.serving")


class Given(NamedTuple):
    """A history that comes with its request, oldest first; None for what is not told."""

    items: Sequence[ItemId]
    times: Sequence[Time] | None = None
    kinds: Sequence[str | None] | None = None
    contexts: Sequence[Context | None] | None = None


class Service:
    """A model and a store of events, answering the requests of many users.

    Coroutines raise ``Refusal`` for what cannot be answered.

    Args:
        run: folder of the model.
        open_store: gives a new object for the same store; called four times.
        config: limits, waiting times, memory.
        device: "auto", "cpu" or "cuda".
        threads: of PyTorch, for one operation of the model; None leaves its own number.
        rules: that hold for every request, with those that it brings itself.

    Raises:
        RunError: the run folder is incomplete.
        ConfigError: a rule does not fit the table of items.
        DataError: the store cannot be used, or the filter of the rules leaves no item.
    """

    def __init__(
        self,
        run: str | Path,
        open_store: Callable[[], EventStore],
        config: ServingConfig | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        rules: Rules | None = None,
    ):
        self._rules, self._rule_reader = rules, RuleReader()
        self.config, self._run, self._device = config or ServingConfig(), run, device
        self._refuses_unknown = self.config.unknown_values == "refuse"
        self._keeps_unknown = self.config.unknown_items == "keep"
        self.metrics = Metrics()
        self.metrics.queue_limit.set(self.config.queue)
        self.version = load_version(run, self.config, self.metrics, device=device, rules=rules)
        self.watch = Watch(self.config, self.metrics)
        self.watch.use(self.version)
        store, reader, engine_reader = open_store(), open_store(), open_store()
        self._committer = Committer(store, self.config.queue, self.metrics)
        self._reader = Reader(reader, self.config.queue, self.metrics)
        self._engine = Engine(
            engine_reader,
            self.version,
            self.config,
            self.metrics,
            lists=self.watch.lists,
            threads=threads,
        )
        self._explainer = Explainer(threads)
        self._looked: tuple[float, asyncio.Future[None]] | None = None
        # Counting can take long: nobody waits for it.
        self._counting = threading.Thread(target=_tell, args=(open_store,), daemon=True)
        self._counting.start()

    async def append(self, user: str, events: Sequence[Event]) -> tuple[ModelVersion, Appended]:
        """Make events durable; they are seen by every request that follows.

        Those of items that the version does not know wait for one that does.
        """
        version = self.version
        catalogue, keep = version.catalogue, self._keeps_unknown
        events = [
            event._replace(item=catalogue.stored(event.item, f"events[{index}].item", keep=keep))
            for index, event in enumerate(events)
        ]
        for index, (_, _, _, kind, context) in enumerate(events):
            if kind is not None or context is not None:
                named = (f"events[{index}].kind", kind), (f"events[{index}].context", context)
                version.known.check_event(*named, refuse=self._refuses_unknown)
        now, ahead, last = time.time(), self.config.max_future, self.watch.lists.of(user)
        appended: Appended = await self._changed(
            lambda store: store.append(user, events, now, ahead)
        )
        self.metrics.stored.inc(appended.stored)
        if not appended.repeated:
            self.watch.appended(version, last, events)
        elif appended.stored:
            # Which of them are new, the store tells, and nobody waits for it.
            with contextlib.suppress(Refusal):
                self._reader.submit(
                    lambda store: self.watch.appended(
                        version, last, stored_events(store, user, appended)
                    )
                )
        return version, appended

    async def recommend(
        self,
        *,
        user: str | None = None,
        history: Given | Sequence[ItemId] | None = None,
        k: int = 10,
        filter_viewed: bool | None = None,
        exclude: Sequence[ItemId] = (),
        items: Sequence[ItemId] | None = None,
        at: Time | None = None,
        kind: str | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> tuple[ModelVersion, list[tuple[ItemId, float]]]:
        """Items and scores, best first, for a user or for a history that is given.

        Items to exclude may be unknown to the model, those to choose from may not; those of the
        history that are unknown are skipped, or refused. Whether those of the history are left out
        is as in the evaluation of the model unless it is said. A model that sees for when is
        recommended is told ``at``, a time since 1970 in any unit, or now; one that sees which kind
        of event is wanted, ``kind``. Rules, by their names in ``RULES``, hold beside those of the
        server.
        """
        version = self.version
        ruled = await self._ruled(version, rules or {}, filter_viewed)
        catalogue = version.catalogue
        given, known = None, True
        if history is not None:
            try:
                given = self._given(version, history)
            except Refusal as refusal:
                if not _falls_back(ruled, refusal):
                    raise
                known = False
        among = None if items is None else np.unique(catalogue.known_rows(items, "items"))
        viewed = version.filter_viewed if filter_viewed is None else filter_viewed
        choice = Choice(k, [catalogue.known(exclude)], among, ruled)
        request = Request(user, given, choice, viewed, _second(at), version.known.kind(kind))
        if ruled is not None and ruled.exclude_seen_days is not None:
            request = _since(version, request, history, ruled.exclude_seen_days)
        listed = self._listed if known else self._by_fallback
        return version, await listed(version, request)

    async def _listed(self, version: ModelVersion, request: Request) -> list[tuple[ItemId, float]]:
        """The best items; by the fallback, if there is one, where nothing is known of the user."""
        try:
            best = await self._waited(self._engine.recommend(version, request))
        except Refusal as refusal:
            if refusal.code in NOTHING_KNOWN:
                self.metrics.asked.labels(NOTHING_KNOWN[refusal.code]).inc()
            if not _falls_back(request.choice.rules, refusal):
                raise
            return await self._by_fallback(version, request)
        listed = _named(version, best)
        self.watch.recommended(version, request.user, listed)
        return listed

    async def _by_fallback(
        self, version: ModelVersion, request: Request
    ) -> list[tuple[ItemId, float]]:
        """What the fallback, which there is, has for anybody."""
        ruled = request.choice.rules
        assert ruled is not None and ruled.fallback is not None
        scores, nothing = ruled.fallback, np.empty(0, np.int64)
        kind = version.known.fields.kinds[request.kind - 1] if request.kind else None
        asked = AskedFor(request.user, nothing, request.at, kind)
        choice = replace(request.choice, asked=asked)
        ranked = self._engine.call(lambda: version.ranking.best_of(scores, choice))
        listed = _named(version, await self._waited(ranked))
        self.watch.fell_back(version)
        return listed

    async def _ruled(
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

    async def similar(
        self, items: Sequence[ItemId], k: int = 10
    ) -> tuple[ModelVersion, list[list[tuple[ItemId, float]]]]:
        """For each item the closest others, with their cosine, best first."""
        version = self.version
        rows = version.catalogue.known_rows(items, "items")
        found = await self._waited(self._engine.call(lambda: version.ranking.similar(rows, k)))
        return version, [_named(version, best) for best in found]

    async def explain(
        self,
        item: ItemId,
        *,
        user: str | None = None,
        history: Given | Sequence[ItemId] | None = None,
        k: int = 10,
        at: Time | None = None,
        kind: str | None = None,
    ) -> tuple[ModelVersion, dict[str, Any]]:
        """Why an item has its score for a user, or for a history that is given."""
        version = self.version
        check_model(version)
        row = version.catalogue.row(item)
        if row < 0:
            raise unknown_item("item_id", item)
        if user is not None:
            events = await self._waited(self._engine.history(version, user))
        else:
            events = self._given(version, history or ())
        columns = len(version.known.fields.context)
        events = events.asked_for(_second(at), version.known.kind(kind), context=columns)
        return version, await self._waited(self._explainer.explain(version, events, row, k))

    async def profile(self, user: str, last: int) -> tuple[ModelVersion, Profile]:
        """Length and last events of a user."""
        profile: Profile | None = await self._read(lambda store: store.profile(user, last))
        if profile is None:
            raise unknown_user(user)
        version = self.version
        events = [
            event._replace(item=version.catalogue.shown(event.item)) for event in profile.last
        ]
        return version, Profile(profile.length, events)

    async def delete(self, user: str) -> int:
        """Delete a user, from memory and from the disk; gives the number of events."""
        try:
            deleted: int = await self._changed(lambda store: store.delete(user), erase=True)
        finally:
            # Also where traces are left in the files: the events themselves may be deleted.
            await self._forget(user)
        if not deleted:
            raise unknown_user(user)
        return deleted

    async def _forget(self, user: str) -> None:
        """Remove what is in memory of a user."""
        try:
            await self._waited(self._engine.forget(user))
        finally:
            # Lists that were on their way have arrived by now.
            self.watch.lists.drop(user)

    async def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        """Switch items off (they are not recommended) or on again; gives all that are off.

        Those that the version does not know are off for one that does.
        """
        keep = self._keeps_unknown
        off, on = (
            [
                self.version.catalogue.stored(item, f"{name}[{index}]", keep=keep)
                for index, item in enumerate(items)
            ]
            for name, items in (("off", off), ("on", on))
        )
        return self._all_shown(await self._changed(lambda store: store.switch(off, on)))

    async def off(self) -> list[ItemId]:
        """All items that are off."""
        return self._all_shown(await self._read(lambda store: store.off()))

    async def members(self, limit: int, before: str | None = None) -> list[Member]:
        """Users, by the time of their last event; see :meth:`EventStore.members`."""
        return await self._read(lambda store: store.members(limit, before))

    async def reload(self) -> ModelVersion:
        """Serve what the run folder holds now; requests under way end with the model before.

        It begins when the histories of the users who were asked for last are encoded for it, as
        far as that can be had in the time for it; the rest of them follows.

        Raises:
            RunError: the folder is incomplete; the model that was there stays.
        """
        # In another thread: requests are answered while the model is read.
        start = time.monotonic()
        try:
            version = await asyncio.to_thread(
                load_version,
                self._run,
                self.config,
                self.metrics,
                device=self._device,
                rules=self._rules,
            )
        except Exception as error:
            self.metrics.reloads.labels("refused").inc()
            self.watch.refuse(error)
            raise
        logger.info(
            "read version %s of %s in %.1f s", version.id, version.run, time.monotonic() - start
        )
        # Until then the model before answers, with the histories that it has encoded.
        await asyncio.wait(
            [asyncio.wrap_future(self._engine.prepare(version))], timeout=self.config.warm_seconds
        )
        # Nothing comes in between, so that the engine uses it before it has a request for it.
        self.version = version
        used = self._engine.use(version)
        self.watch.use(version)
        await asyncio.wrap_future(used)
        self.metrics.reloads.labels("taken").inc()
        logger.info("serving version %s of %s", version.id, version.run)
        return version

    async def check_ready(self) -> None:
        """Raise Refusal, 503, unless the model and the store do their work.

        The store is looked at by writing to it, at most once a second.
        """
        if not (self._committer.alive and self._engine.alive and self._reader.alive):
            message = "the server has stopped working: start it again"
            raise unavailable("stopped", message, passes=False)
        now = time.monotonic()
        if self._looked is None or now > self._looked[0] + LOOK_SECONDS:
            look = asyncio.ensure_future(self._read(lambda store: store.check()))
            self._looked = now, look
        # Who gives up takes nothing from the others that wait for the same look.
        await asyncio.shield(self._looked[1])

    def close(self) -> None:
        """Finish what has been accepted, then give back threads and files."""
        self._committer.close()
        self._reader.close()
        self._engine.close()
        self._explainer.close()
        self._rule_reader.close()
        self._counting.join(COUNTING_SECONDS)

    def _given(self, version: ModelVersion, given: Given | Sequence[ItemId]) -> History:
        """A history that comes with its request, with what the model takes of it.

        Raises:
            Refusal: 422, an item is unknown where that is refused, all are, or another part is
                wrong.
        """
        items, times, kinds, contexts = given if isinstance(given, Given) else Given(given)
        catalogue = version.catalogue
        keep = self._keeps_unknown
        rows = catalogue.rows(items) if keep else catalogue.known_rows(items, "history")
        for name, values in (("times", times), ("kinds", kinds), ("contexts", contexts)):
            if values is not None and len(values) != len(rows):
                message = f"{name} has {len(values)} entries: the history has {len(rows)} events"
                raise Refusal(422, "invalid", message, field=name, value=len(values))
        none = [None] * len(rows)
        for index, (kind, context) in enumerate(zip(kinds or none, contexts or none, strict=True)):
            if kind is not None or context is not None:
                named = (f"kinds[{index}]", kind), (f"contexts[{index}]", context)
                version.known.check_event(*named, refuse=self._refuses_unknown)
        seconds = None if times is None else _seconds(times)
        columns = version.known.columns(len(rows), None, kinds, contexts)
        if "times" not in version.model.inputs:
            seconds = None
        known = rows >= 0
        if not known.any():
            raise nothing_known("history", "the model knows no item of the history")
        self.metrics.unknown.labels("history").inc(len(rows) - int(known.sum()))
        return History(rows, seconds, **columns)[known]

    def _all_shown(self, items: Sequence[ItemId]) -> list[ItemId]:
        return [self.version.catalogue.shown(item) for item in items]

    async def _changed(self, operation: Callable[[EventStore], Any], *, erase: bool = False) -> Any:
        return await self._waited(self._committer.submit(operation, erase=erase))

    async def _read(self, operation: Callable[[EventStore], Any]) -> Any:
        return await self._waited(self._reader.submit(operation))

    async def _waited(self, future: Future[T]) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.config.timeout)
        except TimeoutError as error:
            message = f"no answer within {self.config.timeout:g} s; it may still be carried out"
            raise unavailable("timeout", message) from error


def _tell(open_store: Callable[[], EventStore]) -> None:
    """Log what the store holds: whoever has taken the wrong one sees it."""
    try:
        with contextlib.closing(open_store()) as store:
            counts, unit = store.counts(), store.unit()
    except Exception as error:
        logger.warning("what the store holds could not be counted: %s", error)
        return
    logger.info(
        "the store holds %s users with %s events, %s",
        f"{counts.users:,}",
        f"{counts.events:,}",
        f"their times in {unit}" if unit else "the unit of their times not known",
    )


def _falls_back(rules: ItemRules | None, refusal: Refusal) -> bool:
    """Whether there is a fallback for a user or history that was refused."""
    return rules is not None and rules.fallback is not None and refusal.code in NOTHING_KNOWN


def _since(
    version: ModelVersion, request: Request, history: Given | Sequence[ItemId] | None, days: float
) -> Request:
    """A request that leaves out what was seen in the last days, and nothing older."""
    second = request.at - days * SECONDS_A_DAY
    if history is None:
        return replace(request, seen_since=second)
    times = history.times if isinstance(history, Given) else None
    if times is None:
        message = f"exclude_seen_days is {days:g}: the history comes without times"
        raise Refusal(422, "no_time", message, field="exclude_seen_days", value=days)
    items = history.items if isinstance(history, Given) else history
    late = version.catalogue.rows(items)[_seconds(times) > second]
    choice = replace(request.choice, left_out=[*request.choice.left_out, late[late >= 0]])
    return replace(request, choice=choice, filter_viewed=False)


def _second(at: Time | None) -> int:
    """A moment in whole seconds since 1970; now, where none is given."""
    if at is None:
        return int(time.time())
    try:
        return as_second("at", at)
    except ConfigError as error:
        raise Refusal(422, "no_time", str(error), field="at", value=at) from error


def _seconds(times: Sequence[Time]) -> np.ndarray:
    """Times of a history in whole seconds since 1970."""
    try:
        return as_seconds("times", times, len(times))
    except ConfigError as error:
        field = str(error).partition(" ")[0]
        raise Refusal(422, "no_time", str(error), field=field) from error


def _named(version: ModelVersion, best: Best) -> list[tuple[ItemId, float]]:
    rows, scores = best
    pairs = zip(rows.tolist(), scores.tolist(), strict=True)
    return [(version.catalogue.id(row), score) for row, score in pairs]
