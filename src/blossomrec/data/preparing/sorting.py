"""Events brought from the order of a table to that of a log, a part of them in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blossomrec.data.event_arrays import EventArrays, Ties, shuffle_ties
from blossomrec.data.event_files import EVENTS_AT_ONCE, EventFiles
from blossomrec.data.field_counts import FieldCounts
from blossomrec.data.fields import EventFields
from blossomrec.data.identity import ArrayDigest
from blossomrec.data.preparing.parts import EventParts
from blossomrec.data.preparing.reading import ReadEvents


@dataclass(frozen=True)
class Written:
    """What is known of the events of a log once they are written.

    Attributes:
        first, last: times.
        has_repeats: whether some user has an item twice.
        fields: their kinds and context, with numbers measured.
        fields_summary: what a summary says of these.
        digests: of the arrays, by name.
    """

    first: int | float
    last: int | float
    has_repeats: bool
    fields: EventFields
    fields_summary: dict[str, Any]
    digests: dict[str, str]


class SortedEvents:
    """The events of a table by user, then time; users and items are places in their sorted ids.

    Args:
        read: the events; they are removed once they are here.
        folder: a new one, that they are kept in.
        hashed: whether ``digests`` are wanted.

    Attributes:
        parts: the events.
        digests: of all of them, by the names of ``EventArrays``, as they were first sorted.
        item_counts: events of each item, int64.
    """

    def __init__(self, read: ReadEvents, folder: Path, *, hashed: bool):
        self._fields, self._num_users = read.fields, len(read.users)
        self.parts = EventParts(folder, read.lengths)
        for events in read.batches():
            self.parts.add(events)
        read.remove()
        self.item_counts = read.item_counts
        self._ties, self._digests = Ties(0, 0, 0, 0), dict[str, ArrayDigest]()
        self._hashed = hashed
        self.parts.replace(self._sort)

    @property
    def digests(self) -> dict[str, str]:
        return {name: each.hexdigest() for name, each in self._digests.items()}

    def order_ties(self, ties: Literal["auto", "keep", "shuffle"], source: str) -> dict[str, Any]:
        """Shuffle events with equal times if ``Ties.shuffled`` says so; what a summary says."""
        shuffled = self._ties.shuffled(ties, source)
        if shuffled:
            self.parts.replace(shuffle_ties)
        return self._ties.summary(shuffled)

    def user_counts(self) -> np.ndarray:
        """Events of each user, int64."""
        counts = np.zeros(self._num_users, np.int64)
        for part in self.parts:
            first, last = int(part.users[0]), int(part.users[-1])
            counts[first : last + 1] = np.bincount(part.users - first)
        return counts

    def write(self, folder: Path, user_rows: np.ndarray, item_rows: np.ndarray) -> Written:
        """Write the arrays of a generation, with rows for users and items."""
        fields, renumbered = self._ranked()
        ends, has_repeats = list[Any](), False
        with EventFiles(folder, len(self.parts)) as files:
            for part in self.parts:
                events = renumbered(part.renumbered(user_rows, item_rows))
                has_repeats = has_repeats or events.has_repeats()
                ends += [events.times.min().item(), events.times.max().item()]
                files.write(events)
        counts = _counted(folder, fields, len(self.parts))
        measured = counts.measured()
        told = counts.summary(measured)
        return Written(min(ends), max(ends), has_repeats, measured, told, files.digests())

    def __enter__(self) -> SortedEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.parts.close()

    def _sort(self, part: EventArrays) -> EventArrays:
        events = part.sorted()
        self._ties += Ties.of(events)
        if self._hashed:
            for name, array in vars(events).items():
                if array is not None:
                    shape = (len(self.parts), *array.shape[1:])
                    known = self._digests.setdefault(name, ArrayDigest(array.dtype, shape))
                    known.add(array)
        return events

    def _ranked(self) -> Any:
        counts = FieldCounts(self._fields)
        if self._fields != EventFields():
            for part in self.parts:
                counts.add(part)
        return counts.without_unused(ranked=True)


def _counted(folder: Path, fields: EventFields, length: int) -> FieldCounts:
    """Counts of kinds and context, over blocks of events that are the same for all parts."""
    counts = FieldCounts(fields)
    for start in range(0, length, EVENTS_AT_ONCE):
        rows = slice(start, min(start + EVENTS_AT_ONCE, length))
        context = _rows(folder / "context.npy", rows) if fields.context else None
        kinds = _rows(folder / "kinds.npy", rows) if fields.kinds else None
        users = np.empty(rows.stop - rows.start, np.int32)
        counts.add(EventArrays(users, users, users, None, kinds, context))
    return counts


def _rows(path: Path, rows: slice) -> np.ndarray:
    """Copied from a file, so that no more than these are in memory."""
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[rows])
