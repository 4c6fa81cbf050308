"""Metrics of ranked lists, from the ranks of the targets.

A case may have several targets. They do not compete: the rank of a target counts only items that
are not targets of the same case. In the one list that a user would be shown, the j-th best target
(j from 0) therefore stands at place ``rank + j``, and the metrics are those of this list:

- ``hr@k``: 1 when a target stands among the first k.
- ``recall@k``: the share of the targets that do.
- ``ndcg@k``: sum of 1 / log2(place + 2) over targets among the first k, divided by the largest
  value that as many targets could give (Järvelin and Kekäläinen, 2002).
- ``mrr@k``: 1 / (place + 1) of the first target, 0 when it is not among the first k.

With one target, as in leave-one-out, hr and recall are equal.

``METRICS`` holds them by name, and those of one's own: a function of places [N], targets of each
case in order of rank, offsets [M+1] and k, that gives float64 [M].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from blossomrec.data.windows import each_once
from blossomrec.errors import ConfigError
from blossomrec.evaluation.significance import bootstrap_intervals
from blossomrec.registry import Registry

Metric = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
# Measured in every evaluation.
ACCURACY = ("hr", "recall", "ndcg", "mrr")
METRICS: Registry[Metric] = Registry(
    "metric",
    "blossomrec.metrics",
    {
        "hr": "blossomrec.evaluation.metrics:hit_rate",
        "recall": "blossomrec.evaluation.metrics:recall",
        "ndcg": "blossomrec.evaluation.metrics:ndcg",
        "mrr": "blossomrec.evaluation.metrics:reciprocal_rank",
    },
)


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """Cut-offs in rising order, each once; ConfigError when one is not a positive whole number."""
    if isinstance(ks, str) or not isinstance(ks, Sequence):
        raise ConfigError(f"ks is {ks!r}: a list of whole numbers is needed")
    if not ks:
        raise ConfigError("ks is empty: at least one cut-off is needed")
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ConfigError(f"ks contains {k!r}: a cut-off is a whole number of at least 1")
    return tuple(sorted({int(k) for k in ks}))


def places(ranks: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Places [N] in the list of a case, targets of each case in order of rank."""
    counts = np.diff(offsets)
    case = np.repeat(np.arange(len(counts)), counts)
    ordered = ranks[np.lexsort((ranks, case))]
    return ordered + np.arange(len(ranks)) - offsets[:-1][case]


def hit_rate(places: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """1 where a target stands among the first k, [M]."""
    return (places[offsets[:-1]] < k).astype(float)


def recall(places: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Share of the targets among the first k, [M]."""
    return np.add.reduceat((places < k).astype(float), offsets[:-1]) / np.diff(offsets)


def ndcg(places: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Discounted gain of the targets among the first k over the largest possible one, [M]."""
    counts = np.diff(offsets)
    ideal = np.cumsum(1 / np.log2(np.arange(max(k, counts.max())) + 2))
    gained = np.add.reduceat(1 / np.log2(places + 2) * (places < k), offsets[:-1])
    return gained / ideal[np.minimum(counts, k) - 1]


def reciprocal_rank(places: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """1 / (place + 1) of the first target, 0 beyond the first k, [M]."""
    first = places[offsets[:-1]]
    return (first < k) / (first + 1)


def check_own(names: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics besides ``ACCURACY``, each once; ConfigError when one is not known."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"own_metrics is {names!r}: a list of names is needed")
    for name in names:
        METRICS.check("own_metrics", name)
        check_spelling(name)
    return tuple(name for name in dict.fromkeys(names) if name not in ACCURACY)


def check_spelling(name: str) -> None:
    """Refuse the name of a metric, without its column, that reads like one of another ranking."""
    # What stands before the last _ tells the kind of a sampled ranking.
    if "_" in name:
        raise ConfigError(f"the metric {name!r} has a _ in its name: use a hyphen")


def accuracy(
    ranks: np.ndarray, offsets: np.ndarray, ks: Sequence[int], own: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Every accuracy metric of every case.

    Args:
        ranks: int64 [N], 0 for the first place, case after case.
        offsets: int64 [M+1], where each case's ranks start; every case has at least one.
        ks: cut-offs.
        own: names of metrics besides ``ACCURACY``.

    Returns:
        float64 [M] by name, such as ``ndcg@10``.

    Raises:
        ConfigError: a metric is unknown or gives something else than finite numbers [M].
    """
    place, values = places(ranks, offsets), {}
    for name in (*ACCURACY, *own):
        metric = METRICS.get(name)
        for k in ks:
            values[f"{name}@{k}"] = finite(name, metric(place, offsets, k), (len(offsets) - 1,))
    return values


def finite(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a metric gives as float64 [M], or [] for one number; ConfigError if it is not finite."""
    found = np.asarray(values, dtype=float)
    if found.shape != shape or not np.isfinite(found).all():
        of = f"for each of {shape[0]} cases " if shape else ""
        raise ConfigError(
            f"the metric {name!r} gives numbers of shape {found.shape}: a finite one {of}is needed"
        )
    return found


def popularity(
    top: np.ndarray, percentiles: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Mean popularity percentile of each case's first k recommended items.

    Args:
        top: item rows, best first, [M, largest k]; -1 where fewer could be recommended.
        percentiles: popularity of every item, float64 [I], 0 least and 1 most popular.

    Returns:
        float64 [M] by name; 0 for a case without any recommendation.
    """
    known = np.append(percentiles, 0.0)[top]  # -1 reads the appended zero
    totals, numbers = np.cumsum(known, axis=1), np.cumsum(top >= 0, axis=1)
    last = {k: min(k, top.shape[1]) - 1 for k in ks}
    return {f"popularity@{k}": totals[:, last[k]] / np.maximum(1, numbers[:, last[k]]) for k in ks}


def coverage(top: np.ndarray, num_items: int, ks: Sequence[int]) -> dict[str, float]:
    """Share of the catalogue that stands among the first k items of any case."""
    shares = {}
    for k in ks:
        rows = each_once(top[:, :k])
        shares[f"coverage@{k}"] = float(np.count_nonzero(rows >= 0)) / num_items
    return shares


# Of fewer users a mean says little, and its interval less.
FEW = 30
FEW_NOTE = f"* fewer than {FEW} users: too few to tell"
# First length of each bin; the last one is open.
BINS = (1, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Metrics of some of the users, or of some of the targets."""

    users: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, values: Mapping[str, np.ndarray], *, seed: int, **which: Any) -> Self:
        """Mean and 95 % bootstrap interval of each metric over users, whose values are [U].

        which: the fields that tell which users, or targets, these are.
        """
        return cls(
            users=len(next(iter(values.values()))),
            metrics={name: float(each.mean()) for name, each in values.items()},
            intervals=bootstrap_intervals(values, seed=seed),
            **which,
        )

    @property
    def label(self) -> str:
        """Which these are."""
        raise NotImplementedError

    @property
    def few(self) -> bool:
        """Whether these are too few users to tell anything from."""
        return self.users < FEW

    @property
    def marked_label(self) -> str:
        """The label with a star, of ``FEW_NOTE``, where there are few users."""
        return f"{self.label} *" if self.few else self.label


@dataclass(frozen=True, kw_only=True)
class LengthSlice(Slice):
    """The users whose history has ``low`` to ``high`` events, both included."""

    low: int
    high: int | None  # None: no upper bound

    @property
    def label(self) -> str:
        return f"{self.low:,}+" if self.high is None else f"{self.low:,}–{self.high:,}"


@dataclass(frozen=True, kw_only=True)
class KindSlice(Slice):
    """The targets that are events of one kind, of the users who have such."""

    kind: str
    targets: int

    @property
    def label(self) -> str:
        return self.kind


def by_history_length(
    lengths: np.ndarray, per_user: Mapping[str, np.ndarray], *, seed: int = 0
) -> tuple[LengthSlice, ...]:
    """Mean and 95 % bootstrap interval of each metric [U] in every bin that ``lengths`` [U] use."""
    bins = np.searchsorted(BINS, lengths, side="right") - 1
    slices = []
    for number in np.unique(bins).tolist():
        inside = {name: values[bins == number] for name, values in per_user.items()}
        high = BINS[number + 1] - 1 if number + 1 < len(BINS) else None
        slices.append(LengthSlice.of(inside, seed=seed, low=BINS[number], high=high))
    return tuple(slices)
