"""What each step costs at sizes that were not measured, from rates that were.

Nothing here reads a file: :mod:`benchmarks.tables.planning_rates` brings what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Of each user, in all sizes; as in the simulated logs that are prepared.
EVENTS_EACH = 100
# Epochs of a training.
EPOCHS = 10
# Recommended to each user.
K = 100
# Numbers of an item's vector.
HIDDEN = 128
# Of a log: the row of an item (int32) and a time (int64); where each user begins (int64).
EVENT_BYTES, USER_BYTES = 12, 8
# On disk while a log is prepared, at most, for each event.
SORTING_BYTES = 32
# A user's id, an item's, a score and a rank, before compression, where ids are integers.
RECOMMENDATION_BYTES = 28
# Memory of a GPU, and the share of it that the item table may take.
CARD_GIB, FOR_TABLE = 80, 0.75
# How many float32 a training keeps of each number of the table: weight, gradient, two moments and
# average; the sampled loss with lazy_adamw has no gradient of all items, and an int64 for each.
TABLE_FLOATS = {"exact": 5, "sampled": 4}
AGE_BYTES = {"exact": 0, "sampled": 8}


@dataclass(frozen=True)
class Size:
    """How large a service is."""

    events: int
    items: int

    @property
    def users(self) -> int:
        return self.events // EVENTS_EACH


SIZES = (
    Size(1_000_000, 100_000),
    Size(100_000_000, 1_000_000),
    Size(1_000_000_000, 10_000_000),
    Size(10_000_000_000, 100_000_000),
)


@dataclass(frozen=True)
class Traffic:
    """What users ask for.

    Attributes:
        active: share of the users who come back while their histories are kept.
        daily: requests and events of a user in a day.
        peak: how many times the mean the busiest moment has.
    """

    active: float = 0.1
    daily: float = 5.0
    peak: float = 3.0

    def peak_rate(self, users: int) -> float:
        """Requests a second at the busiest moment.

        >>> Traffic(daily=8.64, peak=2.0).peak_rate(1_000_000)
        200.0
        """
        return users * self.daily * self.peak / 86_400


def event_seconds(
    measured: Mapping[int, float], seconds_of_item: float, items: int
) -> tuple[float, bool]:
    """Seconds of one GPU for an event in training, and whether that was measured.

    Args:
        measured: seconds for an event, by items of the catalogue.
        seconds_of_item: those that one more item of the catalogue adds; 0 for a sampled loss.
        items: of the catalogue.
    """
    nearest = min(measured, key=lambda each: abs(math.log(each / items)))
    return measured[nearest] + seconds_of_item * (items - nearest), nearest == items


def table_mib(items: int, hidden_size: int, loss: str) -> float:
    """MiB of what a training keeps of the item table, on all GPUs together.

    >>> round(table_mib(1_000_000, 128, "exact"))
    2441
    """
    each = 4 * hidden_size * TABLE_FLOATS[loss] + AGE_BYTES[loss]
    return items * each / 2**20


def least_gpus(mib: float) -> int:
    """How many GPUs an item table needs.

    >>> least_gpus(60 * 1024), least_gpus(61 * 1024)
    (1, 2)
    """
    return max(1, math.ceil(mib / (1024 * CARD_GIB * FOR_TABLE)))


def gpu_hours(events: int, seconds: float, gpus: int, of_two: float) -> float:
    """GPU-hours of an epoch.

    Args:
        seconds: of one GPU, for an event.
        gpus: how many it takes.
        of_two: how many times the events of one GPU two train on in the same time.
    """
    return events * seconds / 3_600 * (2 / of_two if gpus > 1 else 1)


def replicas(users: int, rate: float, traffic: Traffic) -> int:
    """Servers for the peak, and one more, so that one may be away.

    Args:
        rate: requests a second of one.
    """
    return math.ceil(traffic.peak_rate(users) / rate) + 1


def kept_gib(users: int, kib: float, traffic: Traffic) -> float:
    """GiB of encoded histories of all replicas together.

    Args:
        kib: of one user.
    """
    return traffic.active * users * kib / 2**20


def cost(gpu_hours: float, machine_hours: float, gpu_price: float, machine_price: float) -> float:
    """What hours cost.

    >>> cost(2.0, 10.0, gpu_price=3.0, machine_price=0.5)
    11.0
    """
    return gpu_hours * gpu_price + machine_hours * machine_price
