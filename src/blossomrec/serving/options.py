"""How a model is served: limits, waiting times, memory."""

from __future__ import annotations

from dataclasses import dataclass

from blossomrec.config import check, option
from blossomrec.errors import ConfigError

LARGEST_HISTORY = 10_000_000


@dataclass(frozen=True)
class ServingConfig:
    """Options of a server, checked by :meth:`checked`."""

    max_len: int = option(
        0,
        "events of a history that the model sees, 0 for the model's own number",
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
    probes: int = option(0, "lists of items looked into (faiss), 0 ranks all items", low=0)
    batch: int = option(32, "most requests that are computed together", low=1, high=4_096)
    wait_ms: float = option(0.5, "longest wait for more requests to compute together", low=0)
    queue: int = option(256, "requests that may wait; more are turned away", low=1)
    in_flight: int = option(512, "requests that may be open at a time", low=1)
    timeout: float = option(10.0, "seconds until a request is given up", low=0.001)
    max_k: int = option(1_000, "most recommendations for a request", low=1)
    max_items: int = option(10_000, "most ids in a list of a request", low=1)
    max_events: int = option(1_000, "most events appended by a request", low=1)
    max_similar: int = option(20, "most items of a request for similar ones", low=1)
    max_body: int = option(1 << 20, "largest body of a request, in bytes", low=1)

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
