"""Counts of the kinds and the context of events that are met piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.fields import EventFields


class FieldCounts:
    """How many events have each kind and each value of a category, and how numbers lie.

    Args:
        fields: the kinds and the columns of the context.
    """

    def __init__(self, fields: EventFields):
        self._fields = fields
        self._events = 0
        self._kinds = np.zeros(len(fields.kinds) + 1, np.int64)
        self._columns = [np.zeros(one.size, np.int64) for one in fields.context]
        self._numbers = [_Moments() for _ in fields.context]

    def add(self, events: EventArrays) -> None:
        """Count a piece of the events."""
        self._events += len(events.users)
        if events.kinds is not None:
            self._kinds += np.bincount(events.kinds, minlength=len(self._kinds))
        for number, column in enumerate(self._fields.context):
            assert events.context is not None
            values = events.context[:, number]
            known = values[~np.isnan(values)]
            if column.kind == "category":
                counts = np.bincount(known.astype(np.int64), minlength=column.size)
                self._columns[number] += counts
            else:
                self._columns[number] += len(known)
                self._numbers[number].add(known.astype(np.float64))

    def measured(self) -> EventFields:
        """The fields with mean and deviation of numbers over all events."""
        columns = [
            column if column.kind == "category" else moments.measured(column)
            for column, moments in zip(self._fields.context, self._numbers, strict=True)
        ]
        return replace(self._fields, context=tuple(columns))

    def summary(self, fields: EventFields) -> dict[str, Any]:
        """What ``summary`` of a log says of them: of kinds their events, of each column of the
        context its kind, its size and the share of events in which it is known."""
        names = dict(zip(("", *fields.kinds), map(int, self._kinds), strict=True))
        unknown = names.pop("")
        columns = list[dict[str, Any]]()
        for column, counts in zip(fields.context, self._columns, strict=True):
            share = int(counts.sum()) / self._events
            told: dict[str, Any] = {"name": column.name, "kind": column.kind, "known": share}
            if column.kind == "category":
                told["size"] = len(column.names)
            else:
                told |= {"mean": column.mean, "deviation": column.deviation}
            columns.append(told)
        return {"kinds": names, "events_of_unknown_kind": unknown, "context": columns}

    def without_unused(
        self, *, ranked: bool = False
    ) -> tuple[EventFields, Callable[[EventArrays], EventArrays]]:
        """The fields without names that no event has, and what gives events their numbers.

        ranked: names in falling order of events; those with equally many stay in their order.
        """
        kinds, kind_numbers = _kept(self._fields.kinds, self._kinds, ranked)
        columns, numbers = [], []
        for column, counts in zip(self._fields.context, self._columns, strict=True):
            if column.kind == "category":
                names, new = _kept(column.names, counts, ranked)
                columns.append(replace(column, names=names))
                numbers.append(new)
            else:
                columns.append(column)
                numbers.append(None)

        def renumbered(events: EventArrays) -> EventArrays:
            context = events.context
            if context is not None:
                context = context.copy()
                for place, new in enumerate(numbers):
                    if new is not None:
                        known = ~np.isnan(context[:, place])
                        codes = context[known, place].astype(np.int64)
                        context[known, place] = new[codes]
            # A log without a single kind has no column of them.
            new_kinds = kind_numbers[events.kinds] if kinds and events.kinds is not None else None
            return replace(events, kinds=new_kinds, context=context)

        return EventFields(kinds, tuple(columns)), renumbered


def _kept(
    names: tuple[str, ...], counts: np.ndarray, ranked: bool
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names that are met, and for each number, 0 too, its new one: int32."""
    order = np.argsort(-counts[1:], kind="stable") if ranked else np.arange(len(names))
    used = order[counts[1:][order] > 0]
    numbers = np.zeros(len(counts), np.int32)
    numbers[used + 1] = np.arange(1, len(used) + 1)
    return tuple(names[place] for place in used.tolist()), numbers


class _Moments:
    """Mean and deviation of numbers that come in pieces (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        squares = float(np.square(values - mean).sum())
        total, apart = self._count + count, mean - self._mean
        self._squares += squares + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def measured(self, column: Any) -> Any:
        if not self._count:
            return column
        # Of values that are all the same the mean is rounded, and the deviation not quite 0.
        same = self._low == self._high
        deviation = 1.0 if same else math.sqrt(self._squares / self._count)
        return replace(column, mean=self._mean, deviation=deviation)
