"""Events as arrays: in the order of a log, equal times ordered, repeated and rare ones dropped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blossomrec.data.fields import ContextField, EventFields

if TYPE_CHECKING:
    import polars as pl

    from blossomrec.data.reading.options import Filters


@dataclass(frozen=True)
class EventArrays:
    """E events: user and item numbers, int32 [E], times [E], and what else is known of them.

    weights: float32 [E]; kinds: int32 [E]; context: float32 [E, C], as of :class:`EventFields`;
    each of them None where there is none.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    weights: np.ndarray | None = None
    kinds: np.ndarray | None = None
    context: np.ndarray | None = None

    def take(self, index: np.ndarray) -> EventArrays:
        """The events at ``index``, a mask or positions."""
        arrays = {name: each for name, each in vars(self).items() if each is not None}
        return EventArrays(**{name: each[index] for name, each in arrays.items()})

    def sorted(self) -> EventArrays:
        """By user, then time; events with equal times stay in order."""
        users, times = self.users, self.times
        later = (users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] >= times[:-1]))
        return self if later.all() else self.take(np.lexsort((times, users)))

    def insert(self, places: np.ndarray, others: EventArrays) -> EventArrays:
        """With other events, each before the event at its place; places: int64, never falling."""
        arrays = {name: each for name, each in vars(self).items() if each is not None}
        return EventArrays(
            **{n: np.insert(each, places, getattr(others, n), axis=0) for n, each in arrays.items()}
        )

    def renumbered(self, user_rows: np.ndarray, item_rows: np.ndarray) -> EventArrays:
        """With ``user_rows[user]`` for each user and ``item_rows[item]`` for each item."""
        return replace(self, users=user_rows[self.users], items=item_rows[self.items])

    def has_repeats(self) -> bool:
        """Whether some user has the same item twice."""
        pairs = self.users.astype(np.int64) * (int(self.items.max()) + 1) + self.items
        pairs.sort()
        return bool((pairs[1:] == pairs[:-1]).any())


def joined(parts: Sequence[EventArrays]) -> EventArrays:
    """Events one after another; all parts know the same of them."""
    names = [name for name, each in vars(parts[0]).items() if each is not None]
    return EventArrays(**{name: np.concatenate([vars(p)[name] for p in parts]) for name in names})


def encode_fields(
    kinds: pl.Series | None, context: Mapping[str, pl.Series]
) -> tuple[EventFields, np.ndarray | None, np.ndarray | None]:
    """Kinds, int32 [E], and context, float32 [E, C], of checked events, and their names.

    Names are numbered in order of their letters, and numbers are not measured yet: as
    :func:`rank_fields` does for the events that are left.

    Args:
        kinds, context: as of ``EventTable``.
    """
    import polars as pl

    names, numbers = ((), None) if kinds is None else _encode_names(kinds)
    columns, values = list[ContextField](), list[np.ndarray]()
    for name, column in context.items():
        if column.dtype == pl.String:
            known, codes = _encode_names(column)
            columns.append(ContextField(name, "category", known))
            values.append(np.where(codes > 0, codes, np.nan).astype(np.float32))
        else:
            columns.append(ContextField(name, "number"))
            values.append(column.fill_null(np.nan).to_numpy())
    return EventFields(names, tuple(columns)), numbers, np.stack(values, 1) if values else None


def _encode_names(values: pl.Series) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in order, and for every value the number of its name, from 1, int32; 0 for null."""
    import polars as pl

    names = values.drop_nulls().unique().sort()
    numbers = pl.Series(np.arange(1, len(names) + 1, dtype=np.int32))
    found = values.replace_strict(names, numbers, default=0, return_dtype=pl.Int32)
    return tuple(names.to_list()), found.to_numpy()


def rank_fields(events: EventArrays, fields: EventFields) -> tuple[EventArrays, EventFields]:
    """The events with names in falling order of events, then of name, and numbers measured.

    Names that none of the events has are left out; kinds are, where no event has any.
    """
    kinds, names = events.kinds, fields.kinds
    if kinds is not None:
        names, numbers = _rank_names(names, kinds)
        kinds = numbers[kinds] if names else None
    columns, values = list[ContextField](), list[np.ndarray]()
    for number, column in enumerate(fields.context):
        assert events.context is not None
        given = events.context[:, number]
        known = ~np.isnan(given)
        if column.kind == "category":
            codes = np.where(known, given, 0).astype(np.int32)
            kept, numbers = _rank_names(column.names, codes)
            columns.append(replace(column, names=kept))
            values.append(np.where(known, numbers[codes], np.nan).astype(np.float32))
        else:
            columns.append(_measured(column, given[known].astype(np.float64)))
            values.append(given)
    context = np.stack(values, 1) if values else None
    return replace(events, kinds=kinds, context=context), EventFields(names, tuple(columns))


def _rank_names(names: tuple[str, ...], codes: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in falling order of events, and for each code, 0 too, its new number, int32."""
    counts = np.bincount(codes, minlength=len(names) + 1)[1:]
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    numbers = np.zeros(len(names) + 1, np.int32)
    numbers[order + 1] = np.arange(1, len(order) + 1)
    return tuple(names[place] for place in order.tolist()), numbers


def _measured(column: ContextField, values: np.ndarray) -> ContextField:
    if not len(values):
        return column
    # Of values that are all the same the mean is rounded, and the deviation not quite 0.
    same = values.min() == values.max()
    deviation = 1.0 if same else float(values.std())
    return replace(column, mean=float(values.mean()), deviation=deviation)


def drop_events(events: EventArrays, filters: Filters) -> tuple[EventArrays, list[dict[str, Any]]]:
    """The sorted events that remain, and what was dropped: one {reason, events} per filter in use.

    Duplicates go first. Merging repeats and dropping rare users and items then alternate until
    neither finds any more, as each can make work for the other.
    """
    counts: dict[str, int] = {}
    if filters.drop_duplicates:
        events = _keep(events, ~_is_duplicate(events), counts, "same user, item and timestamp")
    before = -1
    while before != len(events.items) > 0:
        before = len(events.items)
        if filters.merge_repeats:
            events = _keep(events, ~_is_repeat(events), counts, "repeat of the event before")
        events = _drop_rare(events, filters, counts)
    return events, [{"reason": reason, "events": count} for reason, count in counts.items()]


def _keep(
    events: EventArrays, kept: np.ndarray, counts: dict[str, int], reason: str
) -> EventArrays:
    dropped = int(len(kept) - np.count_nonzero(kept))
    counts[reason] = counts.get(reason, 0) + dropped
    return events.take(kept) if dropped else events


def _is_duplicate(events: EventArrays) -> np.ndarray:
    keys = [events.times, events.items, events.users]
    if events.kinds is not None:
        keys.insert(0, events.kinds)
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, dtype=bool)
    for values in keys:
        ordered = values[order]
        same &= ordered[1:] == ordered[:-1]
    duplicate = np.zeros(len(order), dtype=bool)
    duplicate[order[1:]] = same
    return duplicate


def _is_repeat(events: EventArrays) -> np.ndarray:
    repeat = np.ones(len(events.items), dtype=bool)
    repeat[:1] = False
    for values in (events.users, events.items, events.kinds):
        if values is not None:
            repeat[1:] &= values[1:] == values[:-1]
    return repeat


def _drop_rare(events: EventArrays, filters: Filters, counts: dict[str, int]) -> EventArrays:
    """Iterated core: until every user and every item left has enough events."""
    few_user = f"user with fewer than {filters.min_user_events} events"
    few_item = f"item with fewer than {filters.min_item_events} events"
    before = -1
    while before != len(events.items) > 0:
        before = len(events.items)
        if filters.min_user_events > 1:
            common = np.bincount(events.users) >= filters.min_user_events
            events = _keep(events, common[events.users], counts, few_user)
        if filters.min_item_events > 1 and len(events.items):
            common = np.bincount(events.items) >= filters.min_item_events
            events = _keep(events, common[events.items], counts, few_item)
    return events


# Fewer steps than these prove nothing about how a table is sorted.
MIN_STEPS = 100
MAX_ASCENDING = 0.95


@dataclass(frozen=True)
class Ties:
    """Steps from an event of a user to the next one at the same time.

    steps: all steps between neighbouring events of a user, tied or not; ascending, descending:
    tied steps to an item whose id comes later or earlier; to the same item it is neither.
    """

    steps: int
    tied: int
    ascending: int
    descending: int

    @classmethod
    def of(cls, events: EventArrays) -> Ties:
        """Counted in sorted events whose item numbers are in order of id."""
        tied, items = _tied(events), events.items
        return cls(
            steps=int(np.count_nonzero(events.users[1:] == events.users[:-1])),
            tied=int(np.count_nonzero(tied)),
            ascending=int(np.count_nonzero(tied & (items[1:] > items[:-1]))),
            descending=int(np.count_nonzero(tied & (items[1:] < items[:-1]))),
        )

    @property
    def share_ascending(self) -> float:
        """Among the tied steps to another item; 0 where there is none."""
        return self.ascending / max(self.ascending + self.descending, 1)

    @property
    def sorted_by_item(self) -> bool:
        """Whether the order of tied events is that of their ids, and so tells the next item."""
        enough = self.ascending + self.descending >= MIN_STEPS
        return enough and self.share_ascending > MAX_ASCENDING

    def summary(self, shuffled: bool) -> dict[str, Any]:
        return {
            "steps": self.tied,
            "share": self.tied / max(self.steps, 1),
            "share_ascending": self.share_ascending,
            "shuffled": shuffled,
        }


def order_ties(
    events: EventArrays, ties: Literal["auto", "keep", "shuffle"], source: str
) -> tuple[EventArrays, dict[str, Any]]:
    """Sorted events with their ties as they are or shuffled, and what to say of it in a summary.

    events: sorted by user and time, with item numbers in order of id. "auto" shuffles, with a
    warning that names ``source``, where the order is that of the ids.
    """
    counted = Ties.of(events)
    leaks = counted.sorted_by_item
    if ties == "auto" and leaks:
        warnings.warn(
            f"{source}: events with equal times are shuffled, as their order is none: "
            f"{counted.share_ascending:.1%} of {counted.ascending + counted.descending:,} steps "
            "between them lead to a higher item id (the option ties decides)",
            stacklevel=2,
        )
    shuffled = ties == "shuffle" or (ties == "auto" and leaks)
    return shuffle_ties(events) if shuffled else events, counted.summary(shuffled)


def shuffle_ties(events: EventArrays) -> EventArrays:
    """Events with equal times of a user in an order that depends on nothing but what they are.

    The order is that of a hash of user, time, item and, if there is one, kind, so that the order of
    the table and other events leave no trace in it.
    """
    tied = _tied(events)
    if not tied.any():
        return events
    with_previous, with_next = np.append(False, tied), np.append(tied, False)
    places = np.flatnonzero(with_previous | with_next)
    group = np.cumsum(~with_previous)[places]
    keys = [events.items[places], _hashes(events, places), group]
    # Events that are equal in all that is hashed differ in these, or not at all.
    if events.weights is not None:
        keys.insert(0, events.weights[places])
    if events.context is not None:
        keys[:0] = events.context[places].T
    order = np.arange(len(events.users))
    order[places] = places[np.lexsort(keys)]
    return events.take(order)


def _tied(events: EventArrays) -> np.ndarray:
    """Whether each event but the first has the user and the time of the one before: bool [E-1]."""
    users, times = events.users, events.times
    return (users[1:] == users[:-1]) & (times[1:] == times[:-1])


def _hashes(events: EventArrays, places: np.ndarray) -> np.ndarray:
    """uint64, of user, time, item and kind of the events at ``places``."""
    times = np.ascontiguousarray(events.times[places]).view(np.uint64)
    mixed = _mix(events.users[places].astype(np.uint64))
    mixed = _mix(mixed ^ times)
    mixed = _mix(mixed ^ events.items[places].astype(np.uint64))
    return mixed if events.kinds is None else _mix(mixed ^ events.kinds[places].astype(np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on all bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
