"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The measures of one server. No label holds an id of a user or an item."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"blossomrec_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"blossomrec_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"blossomrec_{name}", help, labels, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Answers", "method", "route", "status")
        self.seconds = histogram("request_seconds", "Time to the answer", SECONDS, "route")
        self.open = gauge("requests_open", "Requests being answered")
        self.connections = gauge("connections_open", "Connections to clients")
        self.dropped = counter("connections_dropped", "Connections refused or ended", "reason")
        for one in ("slow", "too_many"):
            self.dropped.labels(one)
        self.queue = gauge("queue_length", "Requests that wait", "queue")
        self.queue_limit = gauge("queue_limit", "Requests that may wait in a queue")
        self.stored = counter("events_stored", "Events made durable")
        self.unknown = counter(
            "unknown_items", "Items of new events and histories that the model lacks", "where"
        )
        for one in ("events", "history"):
            self.unknown.labels(one)
        self.encoded = counter("events_encoded", "Events that went through the model")
        self.batch = histogram("batch_requests", "Requests computed together", SIZES)
        self.batch_seconds = histogram("batch_seconds", "Time of computing a batch", SECONDS)
        self.commit_seconds = histogram("commit_seconds", "Time of a transaction", SECONDS)
        self.hits = counter("cache_hits", "Histories found encoded")
        self.misses = counter("cache_misses", "Histories encoded from their events")
        self.ann_wanted = counter("ann_wanted", "Best items when the approximation was checked")
        self.ann_found = counter("ann_found", "Those of them that it found")
        self.evictions = counter("cache_evictions", "Encoded histories that had to leave")
        self.cache_bytes = gauge("cache_bytes", "Bytes of encoded histories")
        self.cache_users = gauge("cache_users", "Encoded histories")
        self.warming = gauge("warming_users", "Histories to be encoded anew for a new model")
        self.reloads = counter("reloads", "Models read again: taken, or refused", "outcome")
        for one in ("taken", "refused"):
            self.reloads.labels(one)
        self.asked = counter("asked_users", "Requests for a user, by what is known", "history")
        for one in ("known", "none", "unknown_items"):
            self.asked.labels(one)
        self.lists = gauge("remembered_lists", "Users whose last list is remembered")
        self.popularity = gauge(
            "popularity_distance", "Of new events to training: total variation over 20 buckets"
        )
        self.popularity_events = gauge("popularity_events", "New events that it is told from")

    def page(self) -> bytes:
        """All measures in Prometheus's text format."""
        return generate_latest(self.registry)
