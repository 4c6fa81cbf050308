"""What a rolling evaluation measures: a line for each period and strategy, and their totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blossomrec.evaluation import metrics
from blossomrec.rolling.options import RETRAIN
from blossomrec.rolling.periods import Period, moment
from blossomrec.rolling.study import Opened
from blossomrec.rolling.targets import MISS, Targets
from blossomrec.rolling.training import Trained

Line = dict[str, Any]
DECISIVE = "ndcg@10"
# Metrics of a line, and the number of targets that they are means of.
PARTS = {
    "metrics": "targets",
    "new_item_metrics": "new_item_targets",
    "old_item_metrics": "old_item_targets",
}


def metrics_of(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Means over events with one target each, by name; empty without any.

    Args:
        ranks: int64 [N], 0 for the first place.
    """
    if not len(ranks):
        return {}
    values = metrics.accuracy(ranks, np.arange(len(ranks) + 1), sorted({10, *ks}))
    # With one target, recall is hr.
    kept = {name: each for name, each in values.items() if not name.startswith("recall")}
    return {name: round(float(each.mean()), 6) for name, each in kept.items()}


@dataclass(frozen=True)
class Result:
    """What one strategy came to in one period."""

    period: Period
    strategy: str
    targets: Targets
    trained: Trained
    ranks: np.ndarray

    def line(self, opened: Opened, model_items: int) -> Line:
        """The line that is kept; JSON-ready."""
        log, items, ks = opened.log, self.targets.items, opened.study.config.evaluation.ks
        first = opened.first[items]
        new = first >= opened.periods[0].start
        return {
            "period": self.period.number,
            "start": moment(log, self.period.start),
            "stop": moment(log, self.period.stop),
            "strategy": self.strategy,
            "tested": opened.study.options.targets,
            "targets": len(items),
            "new_item_targets": int(new.sum()),
            "old_item_targets": int((~new).sum()),
            "unknown_to_all": int((first >= self.period.start).sum()),
            "missed_as_unknown": int((self.ranks == MISS).sum()),
            "without_history": self.targets.without_history,
            "catalogue": len(opened.catalogue(self.period)),
            "model_items": model_items,
            **{name: each for name, each in dataclasses.asdict(self.trained).items()},
            "metrics": metrics_of(self.ranks, ks),
            "new_item_metrics": metrics_of(self.ranks[new], ks),
            "old_item_metrics": metrics_of(self.ranks[~new], ks),
        }


@dataclass(frozen=True)
class Total:
    """A strategy over several periods.

    Attributes:
        counts: targets by part, as in ``PARTS``.
        values: metrics by part, means over all targets.
        seconds: of all its trainings.
    """

    periods: int
    counts: dict[str, int]
    values: dict[str, dict[str, float]]
    seconds: float


def total(lines: Sequence[Line]) -> Total:
    """The total of the lines of one strategy: means over all targets, whatever their period."""
    counts = {part: sum(line[count] for line in lines) for part, count in PARTS.items()}
    values: dict[str, dict[str, float]] = {}
    for part, count in PARTS.items():
        some = [line for line in lines if line[count]]
        names = some[0][part] if some else {}
        values[part] = {
            name: sum(line[part][name] * line[count] for line in some) / counts[part]
            for name in names
        }
    return Total(len(lines), counts, values, sum(line["seconds"] for line in lines))


@dataclass(frozen=True)
class Rolled:
    """A rolling evaluation: the lines of all periods and strategies.

    Attributes:
        lines: as in ``periods.jsonl``, by period, then strategy.
        missing: periods and strategies that are not done, in words.
        intervals: of each strategy beside retraining, the 95 % bootstrap interval over users of
            the share that it has of its NDCG@10.
    """

    lines: list[Line]
    missing: list[str] = dataclasses.field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(line["strategy"] for line in self.lines))

    def of(self, strategy: str, *, first: int = 1) -> list[Line]:
        """The lines of a strategy from a period on."""
        return [
            line for line in self.lines if line["strategy"] == strategy and line["period"] >= first
        ]

    def totals(self) -> Mapping[str, Total]:
        """The total of each strategy."""
        return {strategy: total(self.of(strategy)) for strategy in self.strategies}

    def shares(self, strategy: str) -> tuple[float, float] | None:
        """A strategy's NDCG@10 and seconds as shares of those of retraining; None without both.

        From the second period on: in the first all have the same model. Of periods that both have.
        """
        return shares_of(self.of(strategy, first=2), self.of(RETRAIN, first=2))


def shares_of(lines: Sequence[Line], others: Sequence[Line]) -> tuple[float, float] | None:
    """NDCG@10 and seconds of some lines as shares of others', of the periods that both have."""
    common = {line["period"] for line in lines} & {line["period"] for line in others}
    one, other = (
        total([line for line in each if line["period"] in common]) for each in (lines, others)
    )
    value, base = (each.values["metrics"].get(DECISIVE, 0.0) for each in (one, other))
    if not base or not other.seconds:
        return None
    return value / base, one.seconds / other.seconds
