"""What a server watches of itself while it answers: the one door to lists, drift and records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blossomrec.config import ServingConfig
from blossomrec.errors import BlossomRecError
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import without_folders
from blossomrec.serving.stores.store import Appended, Event, EventStore, ItemId
from blossomrec.serving.watch.lists import LastList, LastLists
from blossomrec.serving.watch.popularity import PopularityDrift
from blossomrec.serving.watch.records import VersionRecords

if TYPE_CHECKING:
    from blossomrec.serving.version.version import ModelVersion


class Watch:
    """Counts what comes of answers; any thread may use it. Nothing of it is on a disk.

    Attributes:
        lists: the last list of each user.
        records: of the versions.
    """

    def __init__(self, config: ServingConfig, metrics: Metrics):
        self.lists = LastLists(config.watched_lists, config.watched_seconds)
        self.records = VersionRecords()
        self._metrics, self._drift = metrics, PopularityDrift(config.watched_events)
        metrics.registry.register(self.records)
        metrics.lists.set_function(self.lists.__len__)
        metrics.popularity.set_function(self._drift.distance)
        metrics.popularity_events.set_function(self._drift.events)

    def use(self, version: ModelVersion) -> None:
        """A version is used from now on."""
        self.records.use(version.id, version.run.name, version.written)
        self._drift.use(version.popularity)

    def refuse(self, error: Exception, run: Path) -> None:
        """The model of a run folder was not taken; clients are told why, and not where it lies."""
        known = isinstance(error, (BlossomRecError, OSError))
        why = without_folders(str(error), run)
        self.records.refuse(why if known else "a fault of the server, which logged it")

    def recommended(
        self, version: ModelVersion, user: str | None, listed: Sequence[tuple[ItemId, float]]
    ) -> None:
        """The model has made a list; for a user it is remembered."""
        self.records.add_list(version.id, fallback=False)
        if user is not None:
            self._metrics.asked.labels("known").inc()
            self.lists.remember(user, version.id, [item for item, _ in listed])

    def fell_back(self, version: ModelVersion) -> None:
        """The fallback has made a list, which says nothing of the model."""
        self.records.add_list(version.id, fallback=True)

    def appended(
        self, version: ModelVersion, last: LastList | None, events: Sequence[Event]
    ) -> None:
        """Events have been stored, none of which was there.

        Args:
            last: what the user had been recommended before.
        """
        catalogue = version.catalogue
        rows = catalogue.rows([event.item for event in events])
        self._metrics.unknown.labels("events").inc(int((rows < 0).sum()))
        self._drift.count(version.popularity, rows[rows >= 0])
        if last is None:
            return
        for event in events:
            if not last.is_after(event.timestamp):
                self.records.add_event(last.version, last.rank(catalogue.spelt(event.item)))


def stored_events(store: EventStore, user: str, appended: Appended) -> list[Event]:
    """Those of the events that were appended to a user which had not been there before."""
    start, (number,) = appended.length - appended.stored, store.numbers([user])
    tail = store.tail(user, number, start, appended.stored)
    # The user may be deleted by now.
    if tail is None or tail.start != start:
        return []
    return [Event(item, at) for item, at in zip(tail.items, tail.times, strict=True)]
