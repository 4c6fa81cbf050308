"""Histories of users: what log, stores, requests and batches hold of somebody's events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from blossomrec.data.fields import EventFields, as_name
from blossomrec.data.units import as_seconds
from blossomrec.data.vocabulary import Vocabulary, as_ids
from blossomrec.errors import DataError, shortened

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
        # The context has as many columns as the first events say.
        empty = {"items": np.empty(16, np.int32), "context": np.empty((0, 0), np.float32)}
        self._columns: dict[str, np.ndarray] = {
            name: empty.get(name, np.empty(16, np.int64)).copy() for name in inputs
        }
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def at(self, index: int) -> tuple[Any, ...]:
        """What one event has, in the order of ``inputs``."""
        columns = self._columns.values()
        if "context" not in self._columns:
            return tuple([column.item(index) for column in columns])
        return tuple(
            [each.item(index) if each.ndim == 1 else each[index].tobytes() for each in columns]
        )

    def number(self, name: str, index: int) -> Any:
        """What one event has of one input, which is a number."""
        return self._columns[name].item(index)

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
                shape = (max(end, len(column) * 3 // 2), *new[name].shape[1:])
                column = np.resize(column, shape) if column.size else np.empty(shape, column.dtype)
            column[start:end] = new[name]
            self._columns[name] = column
        self.length = end

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room for growth included."""
        return sum(column.nbytes for column in self._columns.values())


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


def columns_of(history: Any) -> dict[str, list[Any]]:
    """What is given of events, by name: item ids alone, a frame, or lists by name.

    Raises:
        DataError: there are no items, or a column has another length.
    """
    names = getattr(history, "columns", None)
    if names is None and not isinstance(history, Mapping):
        return {"item_id": history}
    columns = {str(name): history[name] for name in (history if names is None else names)}
    if "item_id" not in columns:
        shown = ", ".join(map(repr, columns)) or "none"
        raise DataError(f"the history has no column 'item_id': its columns are {shown}")
    # Values as Python has them, also of arrays and series.
    listed = {
        name: values if name == "item_id" else _as_list(values) for name, values in columns.items()
    }
    count = len(listed["item_id"])
    for name, values in listed.items():
        if len(values) != count:
            raise DataError(
                f"the history's column {name!r} has {len(values)} entries, 'item_id' has {count}"
            )
    return listed


def _as_list(values: Any) -> list[Any]:
    """The values, missing ones as None."""
    if hasattr(values, "notna"):
        # Series of pandas have several values that stand for a missing one.
        values = values.astype(object).where(values.notna(), None)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [None if isinstance(one, float) and one != one else one for one in listed]


def given_history(rows: np.ndarray, columns: Mapping[str, Any], fields: EventFields) -> History:
    """The history of item rows [n] with what a caller knows of the events; see ``columns_of``.

    Args:
        fields: what the model sees of events; other kinds and names are unknown to it.

    Raises:
        DataError: a column is none that the model knows, or a number of the context is none.
        ConfigError: a time is none, or they do not rise.
    """
    known = {each.name for each in fields.context}
    for name in columns:
        if name not in known | {"item_id", "timestamp", "kind"}:
            there = ", ".join(map(repr, ["item_id", "timestamp", "kind", *sorted(known)]))
            raise DataError(f"the history has the column {name!r}: the model knows {there}")
    found = dict[str, np.ndarray]()
    if "timestamp" in columns:
        found["times"] = as_seconds("timestamp", columns["timestamp"], len(rows))
    if "kind" in columns:
        names = [None if one is None else as_name(one) for one in columns["kind"]]
        found["kinds"] = fields.kind_numbers(names)
    given = [name for name in columns if name in known]
    if given:
        events = zip(*(columns[name] for name in given), strict=True)
        found["context"] = fields.rows([dict(zip(given, one, strict=True)) for one in events])
    return History(rows, **found)
