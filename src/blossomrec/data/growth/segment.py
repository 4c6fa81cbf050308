"""A segment: what one append adds to a log, until it is merged into the log's generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.event_files import EventFiles
from blossomrec.data.features import FeatureTable
from blossomrec.data.log import ITEMS, SEGMENT, SEGMENTS, USERS, EventLog
from blossomrec.data.vocabulary import Vocabulary, natural, text
from blossomrec.data.windows import boundaries
from blossomrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

# Of the columns of events, those that only some logs have, and their types.
OPTIONAL = {"weights": "float32", "kinds": "int32", "context": "float32"}


class FeatureRows(NamedTuple):
    """What a table given with an append says of some rows of a vocabulary; rows: int64 [R]."""

    rows: np.ndarray
    table: FeatureTable


@dataclass(frozen=True)
class Segment:
    """Events to add, and what they need.

    Attributes:
        events: in the log's rows and numbers, by user, then time, in pieces of all events of some
            users.
        num_events: how many.
        ids: of new users and items, which take the rows after those that are there.
        features: of users and items, new ones or known ones.
    """

    events: Iterable[EventArrays]
    num_events: int
    ids: dict[str, pl.Series]
    features: dict[str, FeatureRows] = field(default_factory=dict)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write it to a folder that is there and empty; what ``log.json`` is to say of it."""
        met = [(np.empty(0, np.int32), np.empty(0, np.int64))]
        with EventFiles(folder, self.num_events) as files:
            for events in self.events:
                files.write(events)
                met.append(np.unique(events.users, return_counts=True))
        users, lengths = (np.concatenate(each) for each in zip(*met, strict=True))
        np.save(folder / "users.npy", users.astype(np.int32))
        np.save(folder / "offsets.npy", boundaries(lengths))
        for table, ids in self.ids.items():
            if len(ids):
                Vocabulary(ids).save(folder / table)
        for table, (rows, features) in self.features.items():
            np.save(folder / f"{table}-rows.npy", rows)
            features.save(folder / f"{table}-features")
        return {
            "histories": len(users),
            "events": self.num_events,
            **{f"new_{table}": len(self.ids[table]) for table in (USERS, ITEMS)},
            **{f"{table}_features": table in self.features for table in (USERS, ITEMS)},
        }


class OpenSegment:
    """A segment of a log, its arrays memory-mapped.

    Attributes:
        users: int32 [n], rows of the users it has events of, rising.
        offsets: int64 [n+1], where their events begin and the last one's end.
        columns: items, times, and whatever else the log knows of events, by the names of
            :class:`EventArrays`.
        new: how many ids of "users" and "items" it adds.
    """

    def __init__(self, log: EventLog, told: dict[str, Any]):
        """Open what ``log.json`` of a log tells of one segment.

        Raises:
            DataError: it is missing or damaged.
        """
        path = log.folder / "log.json"
        name = text(told, "name", path)
        if not SEGMENT.fullmatch(name):
            raise DataError(f"{path} is damaged: a segment is {name[:60]!r}")
        self.folder = log.folder / SEGMENTS / name
        histories, events = natural(told, "histories", path), natural(told, "events", path)
        self.new = {table: natural(told, f"new_{table}", path) for table in (USERS, ITEMS)}
        self._has_features = {one: bool(told.get(f"{one}_features")) for one in (USERS, ITEMS)}
        self.users = self._array("users", "int32", histories)
        self.offsets = self._array("offsets", "int64", histories + 1)
        self.columns = {
            "items": self._array("items", "int32", events),
            "times": self._array("timestamps", str(log.timestamps.dtype), events),
        }
        for column, dtype in OPTIONAL.items():
            if (of_log := getattr(log, column)) is not None:
                self.columns[column] = self._array(column, dtype, events, *of_log.shape[1:])
        if (
            self.offsets[0] != 0
            or self.offsets[-1] != events
            or (np.diff(self.offsets) < 1).any()
            or (np.diff(self.users) < 1).any()
        ):
            raise DataError(f"{self.folder / 'offsets.npy'} is damaged")

    def events(self, start: int, stop: int) -> EventArrays:
        """The events of users ``start .. stop-1``."""
        first, last = np.searchsorted(self.users, [start, stop])
        users = np.repeat(self.users[first:last], np.diff(self.offsets[first : last + 1]))
        part = slice(self.offsets[first], self.offsets[last])
        return EventArrays(users, **{n: np.asarray(a[part]) for n, a in self.columns.items()})

    def last_times(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the users it has events of, and when the last one of those is."""
        places = np.searchsorted(self.users, users)
        # A table of items alone is a segment without events.
        there = places < len(self.users)
        there[there] = self.users[places[there]] == users[there]
        return there, np.asarray(self.columns["times"][self.offsets[places[there] + 1] - 1])

    def vocabulary(self, table: str) -> Vocabulary | None:
        """Ids that it adds to "users" or "items"; None for none."""
        if not self.new[table]:
            return None
        vocabulary = Vocabulary.open(self.folder / table)
        if vocabulary.size != self.new[table]:
            raise DataError(f"{self.folder / table} is damaged: it has {vocabulary.size} ids")
        return vocabulary

    def features(self, table: str) -> FeatureRows | None:
        """What it says of rows of "users" or "items"; None for nothing."""
        if not self._has_features[table]:
            return None
        features = FeatureTable.open(self.folder / f"{table}-features")
        return FeatureRows(self._array(f"{table}-rows", "int64", features.num_rows), features)

    def _array(self, name: str, dtype: str, *shape: int) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error
        if array.shape != shape or str(array.dtype) != dtype:
            raise DataError(f"{path} is damaged: it holds {array.dtype} {list(array.shape)}")
        return array
