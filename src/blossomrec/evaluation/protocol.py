"""The protocol of an evaluation, and its candidates in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ranking = Literal["full", "uni100"]


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
    moments: bool = False  # whether the scorer was told the time of each target
    asked_kinds: bool = False  # whether it was told the kind of the first target of each case
    kinds: tuple[str, ...] = ()  # names of the kinds of events 1, 2, ...; empty without any

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
