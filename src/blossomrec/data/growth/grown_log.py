"""A log as it lies on disk, generation and segments, read as if they were merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays, joined
from blossomrec.data.growth.segment import OPTIONAL, FeatureRows, OpenSegment
from blossomrec.data.id_arrays import IdArrays
from blossomrec.data.log import ITEMS, LOG_FILE, USERS, EventLog
from blossomrec.data.log_folder import segment_names
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.data.windows import each_once

# Values read by one mapping of an array. The system may map 16 pages for each of them: 64 MiB.
VALUES_AT_ONCE = 1_024


class GrownLog:
    """The generation and the segments that ``log.json`` names.

    Attributes:
        base: the log without its segments.
        segments: in the order in which they were appended.
        num_users, num_items: of all together.

    Raises:
        DataError: something is missing or damaged.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        self.base = EventLog.of_generation(folder, description)
        segment_names(description, folder / LOG_FILE)
        self.segments = [OpenSegment(self.base, one) for one in description.get("segments", [])]
        self.num_users = self.base.num_users + sum(one.new[USERS] for one in self.segments)
        self.num_items = self.base.num_items + sum(one.new[ITEMS] for one in self.segments)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Events of each user, int64 [U]."""
        lengths = np.zeros(self.num_users, np.int64)
        lengths[: self.base.num_users] = np.diff(self.base.offsets)
        for segment in self.segments:
            lengths[segment.users] += np.diff(segment.offsets)
        return lengths

    def id_parts(self, table: str) -> Iterator[IdArrays]:
        """All ids of "users" or "items", in order of row, not all at once."""
        for each in self._vocabularies(table):
            yield from each.known().parts()

    def size(self, table: str) -> int:
        """How many "users" or "items" there are."""
        return self.num_users if table == USERS else self.num_items

    def rows(self, table: str, ids: pl.Series) -> np.ndarray:
        """Rows of distinct ids of "users" or "items", in their type; -1 for others: int64.

        They are looked up: what the log has is gone through once, to be checked, and not held.
        """
        wanted, found, first = Vocabulary(ids), np.full(len(ids), -1), 0
        for known in self._vocabularies(table):
            rows = known.rows_of(wanted)
            found = np.where(rows < 0, found, first + rows)
            first += known.size
        return found

    def known(self, table: str, ids: Sequence[int | str]) -> dict[int, int | str]:
        """Those of some ids that "users" or "items" have, in their type, by row, rising."""
        found, first = dict[int, int | str](), 0
        for one in self._vocabularies(table):
            rows = one.rows(ids)
            rows = each_once(rows[rows >= 0])
            found |= zip((first + rows).tolist(), one.ids(rows).to_list(), strict=True)
            first += one.size
        return found

    def _vocabularies(self, table: str) -> Iterator[Vocabulary]:
        """One at a time: each has files open, and a process may not have many."""
        yield self.base.user_vocabulary if table == USERS else self.base.item_vocabulary
        for segment in self.segments:
            added = segment.vocabulary(table)
            if added is not None:
                yield added

    def features(self, table: str) -> list[FeatureRows]:
        """What the segments say of rows of "users" or "items", in order."""
        found = (one.features(table) for one in self.segments)
        return [each for each in found if each is not None]

    def last_times(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of user rows, int64 [n], whether they have events, and the time of the last one."""
        known = users < self.base.num_users
        times = np.zeros(len(users), self.base.timestamps.dtype)
        times[known] = values_at(self.base.timestamps, self.base.offsets[users[known] + 1] - 1)
        for segment in self.segments:
            there, last = segment.last_times(users)
            later = ~known[there] | (last > times[there])
            times[there] = np.where(later, last, times[there])
            known |= there
        return known, times

    def touched(self, start: int, stop: int) -> np.ndarray:
        """Rows of the users ``start .. stop-1`` of whom segments have events, rising."""
        parts = []
        for segment in self.segments:
            first, last = np.searchsorted(segment.users, [start, stop])
            parts.append(np.asarray(segment.users[first:last]))
        return each_once(np.concatenate(parts)) if parts else np.empty(0, np.int32)

    def events(self, start: int, stop: int) -> EventArrays:
        """All events of users ``start .. stop-1``, by user, then time.

        Of events with equal times those of the generation come first, then segment by segment.
        """
        base = self._base_events(start, stop)
        added = [one.events(start, stop) for one in self.segments]
        added = [one for one in added if len(one.users)]
        if not added:
            return base
        new = joined(added).sorted()
        return base.insert(self._places(base, new), new)

    def _base_events(self, start: int, stop: int) -> EventArrays:
        base = self.base
        start, stop = min(start, base.num_users), min(stop, base.num_users)
        offsets = np.asarray(base.offsets[start : stop + 1])
        part = slice(offsets[0], offsets[-1])
        users = np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(offsets))
        columns = {name: getattr(base, name) for name in OPTIONAL}
        columns |= {"items": base.items, "times": base.timestamps}
        return EventArrays(
            users, **{n: np.asarray(a[part]) for n, a in columns.items() if a is not None}
        )

    def _places(self, base: EventArrays, new: EventArrays) -> np.ndarray:
        """Before which event of ``base`` each new one belongs: after all at its time, int64 [n]."""
        low = np.searchsorted(base.users, new.users)
        high = np.searchsorted(base.users, new.users, side="right")
        while (unsure := low < high).any():
            middle = (low + high) // 2
            before = unsure.copy()
            before[unsure] = base.times[middle[unsure]] <= new.times[unsure]
            low = np.where(before, middle + 1, low)
            high = np.where(unsure & ~before, middle, high)
        return low


def values_at(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a memory-mapped array at places that lie far apart, at a memory that is bounded.

    The system maps the pages around each place that is read: by and by, the whole array.
    """
    assert isinstance(array, np.memmap) and array.filename is not None
    found = np.empty(len(places), array.dtype)
    for start in range(0, len(places), VALUES_AT_ONCE):
        piece = slice(start, start + VALUES_AT_ONCE)
        # A mapping of its own, whose pages go with it.
        own = np.memmap(array.filename, array.dtype, "r", array.offset, array.shape)
        found[piece] = own[places[piece]]
    return found
