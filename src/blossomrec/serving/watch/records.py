"""The versions of the model that this server has used, and what came of their lists."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

# Ranks up to which a hit counts.
WITHIN = (1, 5, 10, 20, 50, 100)
# Versions, and refused reloads, that are remembered.
MOST_VERSIONS = 20
MOST_REFUSED = 10


@dataclass(frozen=True)
class VersionRecord:
    """One version, and what came of its lists.

    Attributes:
        model: the id of the version.
        run: name of the folder it was read from.
        written: when its weights were, in seconds since 1970, as all times here.
        since, until: when it was used; until is None for the one in use.
        lists, fallbacks: that it ranked, and that the fallback gave in its place.
        followed: events of users who had a list of it as their last one.
        hits: how many of these had their item in that list, up to each rank of ``WITHIN``.
        reciprocal: sum of 1 / rank of these items.
    """

    model: str
    run: str
    written: float
    since: float
    until: float | None = None
    lists: int = 0
    fallbacks: int = 0
    followed: int = 0
    hits: tuple[int, ...] = (0,) * len(WITHIN)
    reciprocal: float = 0.0

    def with_event(self, rank: int | None) -> VersionRecord:
        """With one more event that followed; ``rank`` of its item, None where it was not there."""
        last = math.inf if rank is None else rank
        hits = tuple(hits + (last <= k) for hits, k in zip(self.hits, WITHIN, strict=True))
        more = {"hits": hits, "reciprocal": self.reciprocal + 1 / last}
        return replace(self, followed=self.followed + 1, **more)


@dataclass(frozen=True)
class RefusedReload:
    """A model that was not taken: when, in seconds since 1970, and why."""

    at: float
    why: str


@dataclass(eq=False)
class VersionRecords:
    """Records of the last versions; any thread may use it. A collector of Prometheus.

    Args:
        now: gives the seconds since 1970.
    """

    now: Callable[[], float] = time.time
    _records: dict[str, VersionRecord] = field(default_factory=dict)
    _refused: deque[RefusedReload] = field(default_factory=lambda: deque(maxlen=MOST_REFUSED))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def use(self, model: str, run: str, written: float) -> None:
        """Tell that a version is used from now on."""
        with self._lock:
            now, last = self.now(), next(reversed(self._records), None)
            if last == model:
                return
            if last is not None:
                self._records[last] = replace(self._records[last], until=now)
            # One that is used again goes on counting, as the last of them.
            begun = self._records.pop(model, VersionRecord(model, run, written, now))
            self._records[model] = replace(begun, since=now, until=None)
            if len(self._records) > MOST_VERSIONS:
                del self._records[next(iter(self._records))]

    def refuse(self, why: str) -> None:
        """Tell that a model was not taken."""
        with self._lock:
            self._refused.append(RefusedReload(self.now(), why))

    def add_list(self, model: str, *, fallback: bool) -> None:
        """Count a list."""
        with self._lock:
            if record := self._records.get(model):
                more = {"fallbacks": record.fallbacks + 1} if fallback else {}
                more = more or {"lists": record.lists + 1}
                self._records[model] = replace(record, **more)

    def add_event(self, model: str, rank: int | None) -> None:
        """Count an event that followed a list; see :meth:`VersionRecord.with_event`."""
        with self._lock:
            if record := self._records.get(model):
                self._records[model] = record.with_event(rank)

    def told(self) -> tuple[list[VersionRecord], list[RefusedReload]]:
        """The versions and what was refused, the latest first."""
        with self._lock:
            return [*reversed(self._records.values())], [*reversed(self._refused)]

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told, of versions that are remembered."""
        records, _ = self.told()
        lists = _counter("recommended_lists", "Lists of recommendations", "version", "by")
        followed = _counter("followed_events", "Events of users with a remembered list", "version")
        hits = _counter("hits", "Those of them with an item of the list", "version", "within")
        ranks = _counter("reciprocal_ranks", "Sum of 1 / rank of these items", "version")
        for one in records:
            lists.add_metric([one.model, "model"], one.lists)
            lists.add_metric([one.model, "fallback"], one.fallbacks)
            followed.add_metric([one.model], one.followed)
            ranks.add_metric([one.model], one.reciprocal)
            for within, count in zip(WITHIN, one.hits, strict=True):
                hits.add_metric([one.model, str(within)], count)
        yield from (lists, followed, hits, ranks)
        used = _gauge("model_info", "1 for the model in use", "version")
        before = _gauge("model_before_info", "1 for the model before the one in use", "version")
        for info, one in zip((used, before), records, strict=False):
            info.add_metric([one.model], 1)
        age = _gauge("model_age_seconds", "Since the weights in use were written")
        for one in records[:1]:
            age.add_metric([], self.now() - one.written)
        yield from (used, before, age)


def _counter(name: str, help: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"blossomrec_{name}", help, labels=labels)


def _gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"blossomrec_{name}", help, labels=labels)
