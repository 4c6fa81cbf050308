"""What an evaluation holds: its protocol, the ranks of every case, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from blossomrec.evaluation import metrics
from blossomrec.evaluation.metrics import Slice, by_history_length
from blossomrec.evaluation.significance import bootstrap_intervals

Ranking = Literal["full", "uni100"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class EvaluationProtocol:
    """What was predicted and against which candidates; equal protocols give comparable numbers."""

    split: str | None  # how test events were held out; None when not told
    ranking: Ranking
    filter_seen: bool
    ks: tuple[int, ...]
    seed: int  # of sampled candidates and of the bootstrap
    num_cases: int
    num_targets: int
    num_items: int
    fingerprint: str  # of users, positions and target items of all cases
    num_users: int | None = None  # None: one for each case
    sampled: tuple[int, int] | None = None  # fewest and most items sampled for a case of uni100
    own_metrics: tuple[str, ...] = ()  # names of those that are measured besides the usual ones

    @property
    def label(self) -> str:
        """The ranking by what it really was: ``full``, ``uni100``, or with fewer items ``uni11``.

        Where some users had fewer unseen items than others, it is a range: ``uni20-79``.
        """
        if self.sampled is None:
            return self.ranking
        return "uni" + "-".join(map(str, sorted(set(self.sampled))))

    @property
    def prefix(self) -> str:
        """What the name of each metric starts with: nothing for full ranking."""
        return "" if self.ranking == "full" else f"{self.label}_"

    @property
    def headline_k(self) -> int:
        """The cut-off that is shown first: 10, or the smallest."""
        return 10 if 10 in self.ks else self.ks[0]

    @property
    def one_target(self) -> bool:
        """Whether every case has a single target, which makes hr and recall the same."""
        return self.num_targets == self.num_cases

    @property
    def candidates(self) -> str:
        """The candidates of a ranking in words."""
        if self.ranking == "uni100":
            return self._sampled_candidates
        if self.filter_seen:
            return (
                f"all {self.num_items:,} items but those in the user's history; "
                "a target always stays"
            )
        return f"all {self.num_items:,} items, those in the user's history included"

    @property
    def _sampled_candidates(self) -> str:
        fewest, most = self.sampled or (100, 100)
        if fewest == most == 100:
            return (
                "100 items drawn uniformly, without replacement, from those the user never met "
                f"(sampled, seed {self.seed}), and the target"
            )
        count = f"{most}" if fewest == most else f"{fewest} to {most}"
        return (
            f"{count} items that the user never met (sampled, seed {self.seed}), and the target: "
            f"a catalogue of {self.num_items:,} items does not have 100 such items for everyone"
        )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Ranks of the targets of M cases, and metrics, intervals and slices made from them.

    Cases of a user stand side by side. ``ranks`` counts from 0 and counts ties against the target:
    the number of candidates, other targets of the case left aside, whose score is at least the
    target's.
    """

    protocol: EvaluationProtocol
    users: np.ndarray  # int64 [M], user rows
    lengths: np.ndarray  # int64 [M], events before the target, however many the model saw
    offsets: np.ndarray  # int64 [M+1], where the ranks of each case start
    ranks: np.ndarray  # int64 [number of targets]
    top: np.ndarray | None  # int32 [M, largest k], recommended item rows; None for uni100
    popularity: np.ndarray | None  # float64 [M, number of ks]; None for uni100
    seconds: float  # time of ranking

    @cached_property
    def per_user(self) -> dict[str, np.ndarray]:
        """Every metric that is a mean over users, its values float64 [U] by name.

        Of a user with several cases it is the mean over them.
        """
        starts, counts = self._users
        values = self._per_case
        return {name: np.add.reduceat(each, starts) / counts for name, each in values.items()}

    @cached_property
    def user_lengths(self) -> np.ndarray:
        """Events before the first case of each user, int64 [U]."""
        return self.lengths[self._users[0]]

    @cached_property
    def _users(self) -> tuple[np.ndarray, np.ndarray]:
        """The first case of each user, and how many cases a user has."""
        _, starts, counts = np.unique(self.users, return_index=True, return_counts=True)
        return starts, counts

    @property
    def _per_case(self) -> dict[str, np.ndarray]:
        protocol = self.protocol
        values = metrics.accuracy(self.ranks, self.offsets, protocol.ks, protocol.own_metrics)
        values = {f"{protocol.prefix}{name}": value for name, value in values.items()}
        if self.popularity is not None:
            names = (f"popularity@{k}" for k in protocol.ks)
            values |= dict(zip(names, self.popularity.T, strict=True))
        return values

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric by name, such as ``ndcg@10`` or ``uni100_ndcg@10``."""
        means = {name: float(values.mean()) for name, values in self.per_user.items()}
        if self.top is None:
            return means
        return means | metrics.coverage(self.top, self.protocol.num_items, self.protocol.ks)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % percentile bootstrap intervals over users, by name of metric.

        Coverage has none: users drawn again recommend fewer distinct items, so the bootstrap of
        coverage would not be centred on it.
        """
        return bootstrap_intervals(self.per_user, seed=self.protocol.seed)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Metrics of the users by length of history, empty bins left out."""
        return by_history_length(self.user_lengths, self.per_user, seed=self.protocol.seed)
