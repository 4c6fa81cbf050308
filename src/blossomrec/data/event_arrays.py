"""Events as arrays: in the order of a log, equal times ordered."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blossomrec.data.fields import ContextField, EventFields
from blossomrec.data.id_arrays import mixed

if TYPE_CHECKING:
    import polars as pl


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
    ``FieldCounts`` does for the events that are left.

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

    def __add__(self, others: Ties) -> Ties:
        """Of the events of more users."""
        return Ties(
            *(one + other for one, other in zip(astuple(self), astuple(others), strict=True))
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

    def shuffled(self, ties: Literal["auto", "keep", "shuffle"], source: str) -> bool:
        """Whether tied events are to be shuffled.

        "auto" says so, with a warning that names ``source``, where their order is that of the ids.
        """
        leaks = self.sorted_by_item
        if ties == "auto" and leaks:
            warnings.warn(
                f"{source}: events with equal times are shuffled, as their order is none: "
                f"{self.share_ascending:.1%} of {self.ascending + self.descending:,} steps "
                "between them lead to a higher item id (the option ties decides)",
                stacklevel=2,
            )
        return ties == "shuffle" or (ties == "auto" and leaks)

    def summary(self, shuffled: bool) -> dict[str, Any]:
        return {
            "steps": self.tied,
            "share": self.tied / max(self.steps, 1),
            "share_ascending": self.share_ascending,
            "shuffled": shuffled,
        }


def order_ties(
    events: EventArrays, ties: Literal["auto", "keep", "shuffle"], source: str
) -> EventArrays:
    """Sorted events with their ties as they are or shuffled, as :meth:`Ties.shuffled` says.

    events: sorted by user and time, with item numbers in order of id.
    """
    return shuffle_ties(events) if Ties.of(events).shuffled(ties, source) else events


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
    hashes = mixed(events.users[places].astype(np.uint64))
    hashes = mixed(hashes ^ times)
    hashes = mixed(hashes ^ events.items[places].astype(np.uint64))
    if events.kinds is not None:
        hashes = mixed(hashes ^ events.kinds[places].astype(np.uint64))
    return hashes
