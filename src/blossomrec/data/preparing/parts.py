"""Events on disk, by user, in parts of which one at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.event_files import EVENTS_AT_ONCE
from blossomrec.data.windows import boundaries, fill


class EventParts:
    """Events in parts of about ``EVENTS_AT_ONCE``, each all events of neighbouring users.

    Of a user the events are in the order in which they were added.

    Args:
        folder: a new one, that the events are kept in.
        lengths: events of each user, int64, none of them 0: as many as are going to be added.
    """

    def __init__(self, folder: Path, lengths: np.ndarray):
        folder.mkdir()
        self._folder = folder
        self._cuts = fill(lengths, EVENTS_AT_ONCE)
        self._starts = boundaries(lengths)[self._cuts]
        self._lengths = np.zeros(len(self._cuts) - 1, np.int64)
        self._shapes = dict[str, tuple[np.dtype, tuple[int, ...]]]()
        self._files = dict[str, FileIO]()

    def __len__(self) -> int:
        """Events that there are."""
        return int(self._lengths.sum())

    def add(self, events: EventArrays) -> None:
        """Put events in any order to those of their users."""
        parts = np.searchsorted(self._cuts, events.users, side="right") - 1
        if len(self._lengths) > 1:
            order = np.argsort(parts, kind="stable")
            events, parts = events.take(order), parts[order]
        met, starts = np.unique(parts, return_index=True)
        for part, start, stop in zip(met, starts, [*starts[1:], len(parts)], strict=True):
            self._put(int(self._starts[part] + self._lengths[part]), events, slice(start, stop))
            self._lengths[part] += stop - start

    def __iter__(self) -> Iterator[EventArrays]:
        """The parts that have events, in order of their users."""
        for part in np.flatnonzero(self._lengths).tolist():
            yield self._part(part)

    def replace(self, function: Callable[[EventArrays], EventArrays]) -> None:
        """Put what a function makes of each part in its place: no more events than these."""
        for part in np.flatnonzero(self._lengths).tolist():
            before = self._part(part)
            events = function(before)
            if events is not before:
                self._put(int(self._starts[part]), events, slice(None))
                self._lengths[part] = len(events.users)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _part(self, part: int) -> EventArrays:
        start, count = int(self._starts[part]), int(self._lengths[part])
        found = {}
        for name, file in self._files.items():
            dtype, shape = self._shapes[name]
            array = np.empty((count, *shape), dtype)
            file.seek(start * dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
            _read(file, array.data.cast("B"))
            found[name] = array
        return EventArrays(**found)

    def _put(self, start: int, events: EventArrays, rows: slice) -> None:
        for name, array in vars(events).items():
            if array is None:
                continue
            if name not in self._files:
                # Without a buffer: what is written is read again.
                self._files[name] = FileIO(self._folder / name, "w+")
                self._shapes[name] = array.dtype, array.shape[1:]
            file, piece = self._files[name], np.ascontiguousarray(array[rows])
            file.seek(start * (array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))))
            if piece.size:
                _write(file, piece.data.cast("B"))


# One call of the system reads or writes no more than 2 GiB.
def _read(file: FileIO, room: memoryview) -> None:
    while room:
        room = room[file.readinto(room) :]


def _write(file: FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]
