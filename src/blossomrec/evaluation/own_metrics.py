"""Metrics that are measured when they are asked for: of ranks, of lists and of the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.features import Feature
from blossomrec.data.windows import each_once
from blossomrec.errors import ConfigError, UnknownNameError, shortened
from blossomrec.evaluation import lists, metrics
from blossomrec.evaluation.list_metrics import CATALOGUE_METRICS, LIST_METRICS
from blossomrec.evaluation.metrics import METRICS
from blossomrec.evaluation.segments import Segments, check_segments
from blossomrec.registry import Registry

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import Cases
    from blossomrec.evaluation.evaluation import Evaluation
    from blossomrec.evaluation.protocol import Ranking


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured besides the usual metrics.

    Attributes:
        own_metrics: names in ``METRICS``, ``LIST_METRICS`` and ``CATALOGUE_METRICS``; one of lists
            by a column of the item table as ``diversity:category``.
        segments: columns of the table of users, each value of which gets metrics of its own.
    """

    own_metrics: Sequence[str] = ()
    segments: Sequence[str] = ()

    def checked(self, log: EventLog, ranking: Ranking) -> OwnMetrics:
        """The same in order, of a log and a ranking that have what is needed; else ConfigError."""
        names = self.own_metrics
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ConfigError(f"own_metrics is {shortened(names)}: a list of names is needed")
        found: dict[str, list[str]] = {kind: [] for kind in _REGISTRIES}
        for name in dict.fromkeys(names):
            found[_kind(name)].append(name)
        of_lists, of_catalogue = found["lists"], found["catalogue"]
        if ranking != "full" and (of_lists or of_catalogue):
            raise ConfigError(
                f"own_metrics names {(of_lists + of_catalogue)[0]!r}, which is measured of lists "
                f"of the whole catalogue: {ranking} ranks among sampled items and makes none; "
                "rank in full"
            )
        return OwnMetrics(
            of_ranks=metrics.check_own(found["ranks"]),
            of_lists={name: _column(name, log) for name in of_lists},
            of_catalogue=tuple(of_catalogue),
            segments=check_segments(self.segments, log),
        )


@dataclass(frozen=True, kw_only=True)
class OwnMetrics:
    """What was :class:`Asked` for, by what it is measured of.

    Attributes:
        of_lists: the column of the item table of each name; None for one without.
    """

    of_ranks: tuple[str, ...]
    of_lists: dict[str, Feature | None]
    of_catalogue: tuple[str, ...]
    segments: tuple[str, ...]

    def added(
        self, evaluation: Evaluation, log: EventLog, cases: Cases, train_end: np.ndarray
    ) -> Evaluation:
        """An evaluation of these cases with metrics of its lists, and with segments of its users.

        Args:
            train_end: how many of each user's first events were trained on, int64 [U].

        Raises:
            ConfigError: a metric gives something else than finite numbers, one for each case.
        """
        users = each_once(cases.users)
        return dataclasses.replace(
            evaluation,
            lists=self._of_lists(evaluation, log, cases, train_end) if self.of_lists else {},
            catalogue={name: _of_catalogue(name, evaluation) for name in self.of_catalogue},
            segments=tuple(Segments.of(log, column, users) for column in self.segments),
        )

    def _of_lists(
        self, evaluation: Evaluation, log: EventLog, cases: Cases, train_end: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Values float64 [M, number of ks] by name."""
        assert evaluation.top is not None
        protocol, training = evaluation.protocol, lists.Training.of(log, train_end)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.of_lists}
        for piece in lists.pieces(
            evaluation.top, log, cases, training, filter_seen=protocol.filter_seen
        ):
            for name, column in self.of_lists.items():
                asked = dataclasses.replace(piece, column=column)
                values = [_of_cases(name, asked, k) for k in protocol.ks]
                parts[name].append(np.stack(values, 1))
        return {name: np.concatenate(values) for name, values in parts.items()}


_REGISTRIES: dict[str, Registry[Any]] = {
    "ranks": METRICS,
    "lists": LIST_METRICS,
    "catalogue": CATALOGUE_METRICS,
}
# Measured of every full ranking, under these names.
_TAKEN = ("popularity", "coverage")


def _kind(name: str) -> str:
    """Of what a metric is measured.

    Raises:
        UnknownNameError: there is no such metric.
        ConfigError: there are two, it has a _ in its name, or it takes no column and one is named.
    """
    if not isinstance(name, str):
        raise ConfigError(f"own_metrics is {shortened(name)}: a list of names is needed")
    base, colon, _ = name.partition(":")
    kinds = [kind for kind, registry in _REGISTRIES.items() if base in registry]
    if not kinds:
        known = tuple(one for registry in _REGISTRIES.values() for one in registry)
        raise UnknownNameError(f"own_metrics is {shortened(name)}", "metric", METRICS.group, known)
    if len(kinds) > 1 or base in _TAKEN:
        raise ConfigError(f"own_metrics names {base!r}, of which there are two: rename yours")
    metrics.check_spelling(base)
    if colon and kinds[0] != "lists":
        raise ConfigError(f"own_metrics names {name!r}: {base} is not measured by a column")
    return kinds[0]


def _column(name: str, log: EventLog) -> Feature | None:
    """The column of the item table that a metric of lists is asked for by; None for none."""
    base, colon, column = name.partition(":")
    kinds = getattr(LIST_METRICS.get(base), "columns", ())
    if not kinds and colon:
        raise ConfigError(f"own_metrics names {name!r}: {base} is not measured by a column")
    if not kinds:
        return None
    table = log.item_features
    if table is None:
        raise ConfigError(
            f"own_metrics names {name!r}: {base} is measured by a column of the table of items, "
            f"and {log.folder} was prepared without one; prepare it with --items"
        )
    fit = [f"{base}:{known}" for known, one in table.items() if isinstance(one, kinds)]
    if name in fit:
        return table[column]
    wanted = " or ".join(kind.kind for kind in kinds)
    known = f"choose one of {', '.join(fit)}" if fit else "the table has none"
    raise ConfigError(
        f"own_metrics names {name!r}: {base} is measured by a column of the table of items of kind "
        f"{wanted}: {known}"
    )


def _of_cases(name: str, piece: lists.Lists, k: int) -> np.ndarray:
    """Values float64 [m] of a metric of lists; ConfigError where it gives something else."""
    metric = LIST_METRICS.get(name.partition(":")[0])
    return metrics.finite(name, metric(piece, k), (len(piece.top),))


def _of_catalogue(name: str, evaluation: Evaluation) -> np.ndarray:
    """Values float64 [number of ks] of a metric of the catalogue."""
    assert evaluation.top is not None
    metric, values = CATALOGUE_METRICS.get(name), []
    for k in evaluation.protocol.ks:
        shown = evaluation.top[:, :k]
        exposure = np.bincount(shown[shown >= 0], minlength=evaluation.protocol.num_items)
        values.append(metrics.finite(name, metric(exposure), ()))
    return np.array(values)
