"""Options of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config.options import LARGEST_HISTORY, check, option
from blossomrec.errors import ConfigError


@dataclass(frozen=True)
class ServingConfig:
    """Options of a server, checked by :meth:`checked`."""

    max_len: int = option(
        0,
        "events of a history that the model sees, 0 for as many as in training",
        low=0,
        high=LARGEST_HISTORY,
    )
    step: int = option(
        1,
        "events by which a history longer than max_len is cut at a time",
        low=1,
        high=LARGEST_HISTORY,
    )
    cache_mib: int = option(1_024, "memory for encoded histories, in MiB", low=0)
    warm: int = option(1_000, "users whose histories are encoded for a new model", low=0)
    warm_seconds: float = option(300.0, "longest time for that, before the model is used", low=0)
    rules_mib: int = option(64, "memory for what expressions of rules come to, in MiB", low=0)
    probes: int = option(0, "lists of items looked into (faiss), 0 ranks all items", low=0)
    batch: int = option(32, "most requests that are computed together", low=1, high=4_096)
    wait_ms: float = option(0.5, "longest wait for more requests to compute together", low=0)
    queue: int = option(256, "requests that may wait; more are refused", low=1)
    in_flight: int = option(512, "requests that may be open at a time", low=1)
    connections: int = option(4_096, "connections that may be open at a time", low=1)
    head_seconds: float = option(10.0, "seconds for the head of a request to arrive", low=0.001)
    timeout: float = option(10.0, "seconds until a request is given up", low=0.001)
    max_k: int = option(1_000, "most recommendations for a request", low=1)
    max_items: int = option(10_000, "most ids in a list of a request", low=1)
    max_events: int = option(1_000, "most events appended by a request", low=1)
    max_similar: int = option(20, "most items of a request for similar ones", low=1)
    max_expression: int = option(4_096, "most characters of an expression", low=1)
    max_rules: int = option(32, "most boosts, and most limits, of a request", low=1)
    max_diverse: int = option(100, "most recommendations for a request with diversity", low=1)
    max_future: float = option(
        86_400.0, "seconds after now that an event may have as its time", low=0
    )
    watched_lists: int = option(
        100_000, "users whose last list is remembered, to count hits in it; 0 for none", low=0
    )
    watched_seconds: float = option(3_600.0, "seconds for which it is remembered", low=0)
    watched_events: int = option(
        10_000, "last events, about, whose items' popularity is watched; 0 for none", low=0
    )
    max_body: int = option(1 << 20, "largest body of a request, in bytes", low=1)
    unknown_values: Literal["keep", "refuse"] = option(
        "keep",
        "events with a kind, a context column or a category that the model does not know: keep, "
        "to store them and see these as unknown, or refuse",
    )
    unknown_items: Literal["keep", "refuse"] = option(
        "keep",
        "events of items that the model does not know: keep, to store them until a model knows "
        "their items and skip those of a history in a request, or refuse",
    )

    def checked(self, longest: int) -> ServingConfig:
        """This configuration, for a model that sees ``longest`` events by itself.

        Raises:
            ConfigError: an option is out of bounds, or ``step`` is longer than the history.
        """
        check(self)
        if self.step > (self.max_len or longest):
            raise ConfigError(
                f"step is {self.step}: it must be at most max_len, {self.max_len or longest}"
            )
        return self
