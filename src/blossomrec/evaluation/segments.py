"""Metrics of some of the users: those who have one value in a column of the table of users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blossomrec.data.features import Categories
from blossomrec.data.windows import gather_index
from blossomrec.errors import ConfigError, shortened
from blossomrec.evaluation.metrics import Slice

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog

# What the users are called of whom the table does not know the column.
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Segments:
    """Which of the U users of an evaluation have which values of a column.

    Attributes:
        column: name of the column of the table of users.
        names: of the values that there are; users of whom none is known have one of their own.
        values: int32 [P], numbers of names; a user may have several.
        of_users: int64 [P], which of the users that is, from 0.
    """

    column: str
    names: tuple[str, ...]
    values: np.ndarray
    of_users: np.ndarray

    @classmethod
    def of(cls, log: EventLog, column: str, users: np.ndarray) -> Segments:
        """Those of user rows [U], by a column that :func:`check_segments` found fit."""
        assert log.user_features is not None
        feature = log.user_features[column]
        assert isinstance(feature, Categories)
        starts, ends = feature.offsets[users], feature.offsets[users + 1]
        numbers = feature.values[gather_index(starts, ends - starts)]
        # The number 0, unknown, comes last.
        used, values = np.unique(np.where(numbers, numbers, feature.size), return_inverse=True)
        names = [feature.names[number - 1] for number in used.tolist() if number < feature.size]
        if len(names) < len(used):
            names.append(f"({UNKNOWN})" if UNKNOWN in names else UNKNOWN)
        of_users = np.repeat(np.arange(len(users)), ends - starts)
        return cls(column, tuple(names), values.astype(np.int32), of_users)

    def by_size(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name of each value and which users have it, int64; those of most users first."""
        counts = np.bincount(self.values, minlength=len(self.names))
        order = np.argsort(-counts, kind="stable").tolist()
        parts = np.split(
            self.of_users[np.argsort(self.values, kind="stable")], np.cumsum(counts)[:-1]
        )
        return ((self.names[number], parts[number]) for number in order)


@dataclass(frozen=True, kw_only=True)
class SegmentSlice(Slice):
    """The users who have one value in a column of the table of users."""

    column: str
    value: str

    @property
    def label(self) -> str:
        return self.value


def check_segments(columns: Sequence[str], log: EventLog) -> tuple[str, ...]:
    """Names of columns of categories in the log's table of users, each once.

    Raises:
        ConfigError: a column is not there or is none of categories, or there is no such table.
    """
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise ConfigError(f"segments is {shortened(columns)}: a list of columns is needed")
    table = log.user_features
    if columns and table is None:
        raise ConfigError(
            f"segments is {shortened(columns[0])}: {log.folder} was prepared without a table of "
            "users; prepare it with --users"
        )
    fit = [name for name, one in (table or {}).items() if isinstance(one, Categories)]
    for name in columns:
        if name in fit:
            continue
        known = f"choose one of {', '.join(fit)}" if fit else "it has no column of categories"
        if table is not None and isinstance(name, str) and name in table:
            reason = (
                f"a column of kind {table[name].kind}; prepare the log with "
                f"--user-kinds {name}=category"
            )
        else:
            reason = "no column of the table of users"
        raise ConfigError(f"segments is {shortened(name)}, {reason}: {known}")
    return tuple(dict.fromkeys(columns))


def by_segment(
    segments: Segments, per_user: Mapping[str, np.ndarray], *, seed: int = 0
) -> tuple[SegmentSlice, ...]:
    """Mean and 95 % bootstrap interval of each metric [U] of every value, most users first."""
    slices = []
    for name, users in segments.by_size():
        inside = {metric: values[users] for metric, values in per_user.items()}
        slices.append(SegmentSlice.of(inside, seed=seed, column=segments.column, value=name))
    return tuple(slices)
