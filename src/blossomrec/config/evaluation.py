"""Options of how a recommender is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config.options import LARGEST_SEED, option


@dataclass(frozen=True)
class EvaluationConfig:
    """How a recommender is measured."""

    split: Literal["leave-one-out", "global-time"] = option(
        "leave-one-out", "how test events are held out"
    )
    last_events: int = option(
        1, "leave-one-out: events of each user's end that are tested, one by one", low=1
    )
    kinds: str = option(
        "",
        "kinds of events that are test and validation targets, such as buy or buy,cart; all "
        "without it",
    )
    valid_share: float = option(
        0.1, "global-time: share of events held out for validation", low=0, high=0.5
    )
    test_share: float = option(
        0.1, "global-time: share of events held out for the test", low=0, high=0.5
    )
    ranking: Literal["full", "uni100"] = option(
        "full", "rank among all items, or among 100 uniform items the user never met"
    )
    filter_seen: Literal["auto", "yes", "no"] = option(
        "auto", "leave items already seen out of the ranking; auto: when the log has no repeats"
    )
    ks: tuple[int, ...] = option((5, 10, 20), "cut-offs of the metrics", low=1, high=10_000)
    seed: int = option(
        0, "seed of sampled candidates and of the bootstrap", low=0, high=LARGEST_SEED
    )
