"""Everything a server can do, without HTTP: events, recommendations, model versions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from blossomrec.config import ServingConfig
from blossomrec.data.history import History
from blossomrec.data.units import Time
from blossomrec.evaluation.quantised_top_k import prepare
from blossomrec.rules import Rules
from blossomrec.serving.engine.engine import Engine
from blossomrec.serving.engine.explainer import Explainer, check_model
from blossomrec.serving.engine.given_history import Given, moment, read_history, without_seen
from blossomrec.serving.engine.jobs import Request
from blossomrec.serving.engine.listing import Listed, Listing, falls_back, named
from blossomrec.serving.engine.store_threads import Committer, Reader
from blossomrec.serving.engine.work import answered
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, unavailable, unknown_item, unknown_user
from blossomrec.serving.stores.store import Appended, Event, EventStore, ItemId, Member, Profile
from blossomrec.serving.version.ranking import Choice
from blossomrec.serving.version.version import ModelVersion, load_version
from blossomrec.serving.watch.watch import Watch, stored_events

T = TypeVar("T")
# How long one look at the store counts: whoever may ask may ask often.
LOOK_SECONDS = 1.0
# How long the end waits for the counting of what the store holds.
COUNTING_SECONDS = 1.0

logger = logging.getLogger("blossomrec.serving")


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
        self.config, self._run, self._device = config or ServingConfig(), run, device
        self._rules = rules
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
        # The version was read with other threads than its model has from now on.
        self._engine.call(lambda: prepare(self.version.model))
        self._listing = Listing(self._engine, self.metrics, self.watch, self.config.timeout)
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
        refuse = self.config.unknown_values == "refuse"
        events = [
            event._replace(item=catalogue.stored(event.item, f"events[{index}].item", keep=keep))
            for index, event in enumerate(events)
        ]
        for index, (_, _, _, kind, context) in enumerate(events):
            if kind is not None or context is not None:
                fields = (f"events[{index}].kind", kind), (f"events[{index}].context", context)
                version.known.check_event(*fields, refuse=refuse)
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
    ) -> tuple[ModelVersion, Listed]:
        """Items and scores, best first, for a user or for a history that is given.

        Items to exclude may be unknown to the model, those to choose from may not; those of the
        history that are unknown are skipped, or refused. Whether those of the history are left out
        is as in the evaluation of the model unless it is said. A model that sees for when is
        recommended is told ``at``, a time since 1970 in any unit, or now; one that sees which kind
        of event is wanted, ``kind``. Rules, by their names in ``RULES``, hold beside those of the
        server.
        """
        version = self.version
        ruled = await self._listing.rules(version, rules or {}, filter_viewed)
        catalogue = version.catalogue
        given, known = None, True
        if history is not None:
            try:
                given = self._history(version, history)
            except Refusal as refusal:
                if not falls_back(ruled, refusal):
                    raise
                known = False
        among = None if items is None else np.unique(catalogue.known_rows(items, "items"))
        viewed = version.filter_viewed if filter_viewed is None else filter_viewed
        choice = Choice(k, [catalogue.known(exclude)], among, ruled)
        request = Request(user, given, choice, viewed, moment(at), version.known.kind(kind))
        if ruled is not None and ruled.exclude_seen_days is not None:
            request = without_seen(version, request, history, ruled.exclude_seen_days)
        listed = self._listing.of if known else self._listing.by_fallback
        return version, await listed(version, request)

    async def similar(
        self, items: Sequence[ItemId], k: int = 10
    ) -> tuple[ModelVersion, list[Listed]]:
        """For each item the closest others, with their cosine, best first."""
        version = self.version
        rows = version.catalogue.known_rows(items, "items")
        found = await self._waited(self._engine.call(lambda: version.ranking.similar(rows, k)))
        return version, [named(version, best) for best in found]

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
            events = self._history(version, history or ())
        columns = len(version.known.fields.context)
        events = events.asked_for(moment(at), version.known.kind(kind), context=columns)
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
            self.watch.refuse(error, Path(self._run))
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
        self._listing.close()
        self._counting.join(COUNTING_SECONDS)

    def _history(self, version: ModelVersion, given: Given | Sequence[ItemId]) -> History:
        return read_history(version, given, self.config, self.metrics)

    def _all_shown(self, items: Sequence[ItemId]) -> list[ItemId]:
        return [self.version.catalogue.shown(item) for item in items]

    async def _changed(self, operation: Callable[[EventStore], Any], *, erase: bool = False) -> Any:
        return await self._waited(self._committer.submit(operation, erase=erase))

    async def _read(self, operation: Callable[[EventStore], Any]) -> Any:
        return await self._waited(self._reader.submit(operation))

    async def _waited(self, future: Future[T]) -> T:
        return await answered(future, self.config.timeout)


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
