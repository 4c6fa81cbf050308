"""Histories of users: what log, stores, requests and batches hold of somebody's events."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.vocabulary import Vocabulary, as_ids
from blossomrec.errors import DataError, shortened

if TYPE_CHECKING:
    import polars as pl

    from blossomrec.data.log import EventLog


# Inputs of a model that sees nothing but which items there were.
ITEMS_ALONE = ("items",)


@dataclass(frozen=True, eq=False)
class History:
    """A user's events, oldest first: one array for each input that a model may have.

    A part of it is a history again: ``history[-200:]``, or ``history[rows >= 0]``.

    Attributes:
        items: item rows, whole numbers [n].
        times: int64 [n], seconds since 1970; None where they are not known or not asked for.
        asked: int64 [n], the moment in seconds for which is recommended after each event: that of
            the next one, or of a request; None where it is not known or not asked for.
        kinds: int64 [n], numbers of the kinds of the events, 0 for an unknown one.
        asked_kinds: int64 [n], the kind of event that is wanted after each: that of the next one,
            or of a request; 0 for any.
        context: float32 [n, C], as of :class:`EventFields`; NaN where it is not known.
        users: int64 [n], the row of the user in the table of users, -1 for an unknown one.

    Raises:
        ValueError: an array has another length than ``items``.

    Example:
        >>> history = History(np.array([3, 1, 4]), times=np.array([10, 20, 30]))
        >>> len(history), history[1:].times.tolist()
        (3, [20, 30])
    """

    items: np.ndarray
    times: np.ndarray | None = None
    asked: np.ndarray | None = None
    kinds: np.ndarray | None = None
    asked_kinds: np.ndarray | None = None
    context: np.ndarray | None = None
    users: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            if column is not None and len(column) != len(self.items):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.items)} events")

    @classmethod
    def of(cls, events: History | Sequence[int] | np.ndarray) -> History:
        """A history, also of item rows alone."""
        return events if isinstance(events, History) else cls(np.asarray(events))

    def asked_for(self, second: int = -1, kind: int = 0, *, context: int = 0) -> History:
        """The same, asked for an event at a moment and of a kind; what is not known is filled in.

        Unknown times and moments are -1, unknown kinds 0, unknown users -1, unknown context NaN in
        so many columns.
        """
        n = len(self.items)
        return replace(
            self,
            times=np.full(n, -1) if self.times is None else self.times,
            asked=np.full(n, second),
            kinds=np.zeros(n, np.int64) if self.kinds is None else self.kinds,
            asked_kinds=np.full(n, kind),
            context=(
                np.full((n, context), np.nan, np.float32) if self.context is None else self.context
            ),
            users=np.full(n, -1) if self.users is None else self.users,
        )

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        return {name: column for name, column in vars(self).items() if column is not None}

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> History:
        """The same with ``function`` applied to every array that is there."""
        return History(**{name: function(each) for name, each in self.columns().items()})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, part: slice | np.ndarray) -> History:
        return self.map(lambda column: column[part])


class GrowingHistory:
    """A history to which events are added; adding n events one by one costs about n.

    Args:
        inputs: names of the arrays that all its events have.

    Attributes:
        length: how many events there are.
    """

    def __init__(self, inputs: Sequence[str] = ITEMS_ALONE):
        self._columns: dict[str, np.ndarray] = {
            name: np.empty(16, np.int32 if name == "items" else np.int64) for name in inputs
        }
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def at(self, index: int) -> tuple[int, ...]:
        """The numbers of one event, in the order of ``inputs``."""
        return tuple([column.item(index) for column in self._columns.values()])

    @property
    def items(self) -> np.ndarray:
        """Item rows, int32 [n], a view."""
        return self._columns["items"][: self.length]

    @property
    def events(self) -> History:
        """All events so far, a view."""
        return History(**{name: each[: self.length] for name, each in self._columns.items()})

    def extend(self, more: History) -> None:
        """Put events behind the others, of which the arrays that are kept are taken."""
        start, end = self.length, self.length + len(more)
        if start == end:
            return
        new = more.columns()
        for name, column in self._columns.items():
            if not np.can_cast(new[name].dtype, column.dtype, "same_kind"):
                # The first time that is no whole number.
                column = column.astype(np.result_type(column, new[name]))
            if end > len(column):
                column = np.resize(column, max(end, len(column) * 3 // 2))
            column[start:end] = new[name]
            self._columns[name] = column
        self.length = end

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room for growth included."""
        return sum(column.nbytes for column in self._columns.values())


class KnownHistories:
    """The histories of a log in the rows of a model's items; events of other items are left out.

    The log may be any: items meet by their external ids.
    """

    def __init__(self, log: EventLog, items: Vocabulary):
        self.log, self._items = log, items

    def history(self, user_row: int) -> History:
        """Events of known items of a user, oldest first; there may be none."""
        history = self.log.history(user_row)
        if self._rows is None:
            return history
        rows = self._rows[history.items]
        return replace(history, items=rows)[rows >= 0]

    def unknown(self, user_rows: np.ndarray) -> tuple[int, int, pl.Series]:
        """Of the events of users: how many are of unknown items, how many in all; these items."""
        offsets = np.asarray(self.log.offsets)
        lengths = offsets[user_rows + 1] - offsets[user_rows]
        if self._rows is None or (self._rows >= 0).all():
            return 0, int(lengths.sum()), self.log.item_vocabulary.ids([])
        counts = np.zeros(self.log.num_items, dtype=np.int64)
        for row in user_rows:
            np.add.at(counts, self.log.history(row).items, 1)
        counts[self._rows >= 0] = 0
        strangers = np.flatnonzero(counts)
        return int(counts.sum()), int(lengths.sum()), self.log.item_vocabulary.ids(strangers)

    def warn_of_unknown(self, user_rows: np.ndarray) -> None:
        """Tell which events of users are left out, for whom asked for recommendations."""
        unknown, events, items = self.unknown(user_rows)
        if unknown:
            shown = shown_ids(items.head(5).to_list(), total=len(items))
            warnings.warn(
                f"{unknown:,} of {events:,} events of these users are of items that the model does "
                f"not know, and are skipped: {shown}",
                stacklevel=3,
            )

    @cached_property
    def _rows(self) -> np.ndarray | None:
        """For every item of the log the model's row, or -1; None where all rows are the same."""
        known = self.log.item_vocabulary
        if known.fingerprint == self._items.fingerprint:
            return None
        return self._items.rows(known.read())


def known_rows(vocabulary: Vocabulary, ids: Iterable[Any], what: str) -> np.ndarray:
    """Rows of ids that must all be known; DataError names those that are not."""
    listed = as_ids(ids, what)
    if not listed:
        raise DataError(f"no {what} is given")
    rows = vocabulary.rows(listed)
    strangers = [one for one, row in zip(listed, rows, strict=True) if row < 0]
    if strangers:
        raise DataError(f"unknown {what} {shown_ids(strangers)}")
    return rows


def shown_ids(ids: Sequence[Any], *, total: int | None = None) -> str:
    """The first five ids, in words; ``total`` is their number where not all are given."""
    left = (len(ids) if total is None else total) - 5
    shown = ", ".join(map(shortened, ids[:5]))
    return shown + (f" and {left} more" if left > 0 else "")
