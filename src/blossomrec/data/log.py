"""A prepared log of events: memory-mapped arrays, opened without reading them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.features import FeatureTable
from blossomrec.data.fields import EventFields, Tables
from blossomrec.data.history import History
from blossomrec.data.identity import array_digests, identity_digest, log_identity
from blossomrec.data.units import (
    ORDER,
    UNITS,
    Following,
    Owners,
    Seconds,
    Whole,
    seconds,
    unit_of_times,
)
from blossomrec.data.vocabulary import Vocabulary, natural, read_description, text
from blossomrec.errors import DataError
from blossomrec.files import TemporaryFolder

if TYPE_CHECKING:
    from blossomrec.data.growth.appended import Appended
    from blossomrec.data.growth.forget import Forgotten

# Written by prepare; a log with segments has the other, which earlier versions do not read.
GENERATION_FORMAT, SEGMENTS_FORMAT = 2, 3
LOG_FORMAT = SEGMENTS_FORMAT
LOG_FILE = "log.json"
# Folders of a log; each holds one folder for every generation, which is what one preparing wrote.
EVENTS, USERS, ITEMS = TABLES = ("events", "users", "items")
# Below users and items, what a table says of them.
FEATURES = "features"
# By what log.json says whether they are there.
FEATURE_TABLES = {USERS: "user_table", ITEMS: "item_table"}
GENERATION = re.compile(r"generation-[0-9a-f]{16}")
# Where appended events lie, a folder for every append, until they are merged.
SEGMENTS = "segments"
# Of many users, those whose offsets are in memory at a time.
USERS_AT_ONCE = 1_000_000
SEGMENT = re.compile(r"segment-[0-9a-f]{16}")


class EventLog:
    """Histories of all users, one after another, on disk.

    A folder holds ``log.json`` (format, generation, counts, identity, options, what was dropped,
    summary) and, under the name of the generation, the vocabularies ``users/`` and ``items/`` and
    in ``events/`` the arrays

    - ``offsets``, int64 [U+1]: where each user's history starts and the last one ends,
    - ``items``, int32 [E]: item rows, by user, then time; equal times in the order of the file
      or shuffled (``summary["ties"]``),
    - ``timestamps``, int64 or float64 [E]: in the unit of the source; datetimes and dates are
      microseconds since 1970 (UTC),
    - ``weights``, float32 [E], if the source gave any,
    - ``kinds``, int32 [E], and ``context``, float32 [E, C], if it has such columns, in the numbers
      that ``fields`` gives them: 0 for an unknown kind, NaN for what is missing of the context;

    ``items/`` and ``users/`` also hold what a table says of them, ``item_features`` and
    ``user_features``, if one was given.

    As prepared, users are in order of id, and item rows in falling order of events, then of id.
    What is appended since keeps these rows and takes the next ones, in order of id.

    An open log never changes, also where its folder is prepared again, appended to or removed: a
    deep copy is the same object. Pickled, it is opened again by its path; one in a temporary folder
    is refused.
    """

    def __init__(self, folder: str | Path):
        """Open a prepared folder, as ``EventLog.open``."""
        self.folder = self._lies_in = Path(folder)
        self._temporary: TemporaryFolder | None = None
        # Where the folder cannot be written, what was appended is merged in another one.
        self._merged: TemporaryFolder | None = None
        self._description = self._describe()
        while True:
            try:
                while self._description.get("segments"):
                    self._merge()
                self._open_generation()
                break
            except DataError:
                # Changed just now, the folder no longer holds what was going to be read.
                self._lies_in = self.folder
                before, self._description = self._description, self._describe()
                if self._description == before:
                    raise

    @classmethod
    def of_generation(cls, folder: Path, description: dict[str, Any]) -> EventLog:
        """What ``description`` names, without what was appended since."""
        self = cls.__new__(cls)
        self.folder = self._lies_in = folder
        self._temporary = self._merged = None
        self._description = description
        self._open_generation()
        return self

    def _describe(self) -> dict[str, Any]:
        return read_description(self._lies_in / LOG_FILE, LOG_FORMAT, "a prepared log of events")

    def _merge(self) -> None:
        from blossomrec.data.growth.compact import merge_to_read

        self._merged = merge_to_read(self.folder)
        if self._merged is not None:
            self._lies_in = self._merged.path / "log"
        self._description = self._describe()

    def _open_generation(self) -> None:
        description, path = self._description, self._lies_in / LOG_FILE
        events, users, items = (natural(description, name, path) for name in TABLES)
        summary, identity = description.get("summary"), description.get("identity", {})
        if not isinstance(summary, dict) or not isinstance(identity, dict):
            raise DataError(f"{path} is damaged: it has no summary or no identity")
        self.has_repeats = bool(description.get("has_repeats"))
        self.summary: dict[str, Any] = summary
        self._places = self._of_generation(path)
        self.offsets = self._array("offsets", users + 1, ("int64",))
        self.items = self._array("items", events, ("int32",))
        self.timestamps = self._array("timestamps", events, ("int64", "float64"))
        has_weights = bool(description.get("weights"))
        self.weights = self._array("weights", events, ("float32",)) if has_weights else None
        # Of logs that were prepared before there were fields, there are none.
        known = description.get("fields")
        self.fields = EventFields() if known is None else EventFields.from_dict(known, str(path))
        self.kinds = self._array("kinds", events, ("int32",)) if self.fields.kinds else None
        columns = len(self.fields.context)
        self.context = self._array("context", events, ("float32",), columns) if columns else None
        self.user_vocabulary = self._vocabulary(USERS, users)
        self.item_vocabulary = self._vocabulary(ITEMS, items)
        self._check_offsets()
        self.item_features = self._features(ITEMS, items)
        self.user_features = self._features(USERS, users)

    def _of_generation(self, path: Path) -> dict[str, Path]:
        """Where the tables lie. In format 1 all arrays lay beside ``log.json``."""
        if self._description["format"] == 1:
            lies_in = self._lies_in
            return {EVENTS: lies_in, USERS: lies_in / USERS, ITEMS: lies_in / ITEMS}
        generation = text(self._description, "generation", path)
        if not GENERATION.fullmatch(generation):
            raise DataError(f"{path} is damaged: generation is {generation[:60]!r}")
        return {table: self._lies_in / table / generation for table in TABLES}

    @classmethod
    def open(cls, folder: str | Path) -> EventLog:
        """The log prepared in ``folder``, with what was appended to it.

        Appended events are merged first: in the folder or, where that cannot be written or another
        process writes it, in a temporary one that lives as long as the log.

        Raises:
            DataError: it is missing or damaged.
        """
        return cls(folder)

    @classmethod
    def prepare(
        cls,
        source: Any,
        folder: str | Path | None = None,
        **options: Any,
    ) -> EventLog:
        """Read, check, filter and sort a table of events and write it to ``folder``.

        source: as of ``read_table``. folder: replaced if it is a prepared log, refused if it is
        anything else that is not empty; None is a temporary folder that lives as long as the log.

        options, all of them by name:

        - ``user``, ``item``, ``timestamp``: columns, ``"user_id"``, ``"item_id"`` and
          ``"timestamp"`` without them. ``weight``: column of weights: how much each event counts in
          training.
        - ``kind``: column of the kinds of events, text, integers or booleans. ``context``: columns
          of what events happened in, such as ``("shop", "price")``: categories or numbers, told
          from name and type, or given: ``context_kinds=("hour=category",)``.
        - ``separator``, ``quote``, ``multiline``, ``normalize_ids``: as of ``read_table``.
        - ``ties``: events of a user with equal times "keep" the order of the table, or are put into
          one that depends on nothing but user, time and item: "shuffle". "auto" shuffles, with a
          warning, where more than 95 % of at least 100 steps between them lead to a higher item id:
          such a table is sorted by id, and its order would tell the next item.
        - ``items``: table of items, a path or a frame, with the column of item ids: titles,
          categories (one or several a row: lists, or text such as ``"Crime|Drama"``), numbers,
          vectors (lists of one length). Kinds of columns are told from names and types, or given:
          ``item_kinds=("year=category",)``. Items without an event belong to the catalogue.
          ``users``, ``user_kinds``: the same of users; those without an event are left out.
        - ``time_unit``: of numbers as times since 1970, or "order".
        - ``min_user_events``, ``min_item_events``: users and items with fewer events are dropped,
          again and again until none is left. ``merge_repeats``: of neighbouring events of a user
          with the same item and kind only the first is kept. ``drop_duplicates``: of events with
          the same user, item, timestamp and kind only the first is kept.

        All is written inside the folder, and replaces what was there in one step at the end; on an
        error nothing has changed, and what a killed process was writing is removed by the next.

        Raises DataError, and ConfigError for an option that is unknown or wrong.

        >>> log = EventLog.prepare("plays.csv", "log", user="listener", min_user_events=5)
        """
        from blossomrec.data.preparation import prepare_folder
        from blossomrec.data.reading.options import PrepareOptions, with_given

        given = with_given(PrepareOptions, options)
        temporary = None
        if folder is None:
            temporary = TemporaryFolder()
            folder = temporary.path / "log"
        prepare_folder(source, Path(folder), given)
        log = cls(folder)
        log._temporary = temporary
        return log

    def append(self, source: Any, **options: Any) -> Appended:
        """Append a table of events to the log's folder; this object stays as it is.

        Users and items that are known keep their rows, new ones take the next. Events go to their
        place in time, after those of the same user and time that are there. Columns, kinds, context
        and weights are as the log was prepared; its filters are not applied. Each table is appended
        once: one that was before changes nothing, and neither does an error.

        It costs as much as what is appended, whatever is there; whoever opens the log next merges
        it. ``blossomrec append`` does not open the log.

        options, all of them by name:

        - ``user``, ``item``, ``timestamp``, ``kind``, ``weight``: columns; ``separator``,
          ``quote``, ``multiline``, ``normalize_ids``: as of :meth:`prepare`; all as they were there
          if they are not given.
        - ``items``, ``users``: tables with the columns of the log's own. What they say of an item
          or user, known or new, replaces what was known of that; new items need no event.
        - ``key``: a name for the table, by which it is known to be there; a digest of its content
          without it.

        Returns:
            Counts of what is new; see :class:`blossomrec.data.growth.appended.Appended`.

        Raises:
            DataError: a column is missing or a value does not fit the log; the message names table,
                column, row and value. Or another process writes the log.
            ConfigError: an option is unknown or wrong.

        >>> EventLog.open("log").append("plays-of-today.csv").events
        """
        from blossomrec.data.growth.append import append_events
        from blossomrec.data.growth.options import AppendOptions
        from blossomrec.data.reading.options import with_given

        return append_events(source, self.folder, with_given(AppendOptions, options))

    def forget(self, user: int | str) -> Forgotten:
        """Write the log's folder anew without a user; this object stays as it is until closed.

        Events, id and what a table says of the user are gone from the disk, and names of kinds and
        categories that nobody else has. Users after that one move up by a row. Items stay. It costs
        as much as reading the log and writing it.

        Returns:
            The id, and how many events there were.

        Raises:
            DataError: the log has no such user, or nobody else; or another process writes it.

        >>> EventLog.open("log").forget("ann")
        """
        from blossomrec.data.growth.forget import forget_user

        return forget_user(self.folder, user)

    @property
    def num_users(self) -> int:
        return self.user_vocabulary.size

    @property
    def num_items(self) -> int:
        return self.item_vocabulary.size

    @property
    def num_events(self) -> int:
        return len(self.items)

    @property
    def tables(self) -> Tables:
        """What is known of items, users and events."""
        return Tables(self.item_features, self.user_features, self.fields)

    @property
    def is_temporary(self) -> bool:
        """Whether the folder goes with this object."""
        return self._temporary is not None

    @cached_property
    def time_unit(self) -> str:
        """Unit of the times since 1970 (UTC), one of ``UNITS``; "order" if they tell no more."""
        unit = self._description.get("time_unit", self._description.get("timestamp_unit"))
        if unit in UNITS or unit == ORDER:
            return unit
        # Prepared before units were told.
        return unit_of_times(self.summary["time"]["first"], self.summary["time"]["last"])

    @property
    def has_times(self) -> bool:
        """Whether the times are points in time, not an order alone."""
        return self.time_unit != ORDER

    @property
    def last_second(self) -> int:
        """Time of the newest event, in seconds since 1970; only where times are points in time."""
        return int(seconds(self.summary["time"]["last"], UNITS[self.time_unit]))

    @property
    def options(self) -> dict[str, Any]:
        """The columns and filters with which the log was prepared."""
        return dict(self._description.get("options", {}))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Counts, and a digest of each part of all that the log holds; JSON-ready.

        Two logs are the same where their identities are equal, wherever they lie. Of a log
        prepared in format 1 it is computed, which reads it whole.
        """
        return self._description.get("identity") or log_identity(
            self.user_vocabulary.fingerprint,
            self.item_vocabulary.fingerprint,
            self.offsets,
            array_digests(items=self.items, times=self.timestamps, weights=self.weights),
            self.num_items,
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the whole identity."""
        return identity_digest(self.identity)

    def columns(self, inputs: Iterable[str]) -> dict[str, np.ndarray]:
        """The arrays [E] of the inputs that are named as in :class:`History`, memory-mapped.

        What "asked" and "asked_kinds" say at the last event of a user is of the next user, and
        not to be used.

        Raises:
            DataError: the log has no such input.
        """
        known: dict[str, Any] = {"items": np.asarray(self.items)}
        if self.has_times:
            known["times"] = Seconds(np.asarray(self.timestamps), self.time_unit)
            known["asked"] = Following(known["times"])
        if self.kinds is not None:
            known["kinds"] = Whole(np.asarray(self.kinds))
            known["asked_kinds"] = Following(known["kinds"])
        if self.context is not None:
            known["context"] = np.asarray(self.context)
        if self.user_features is not None:
            known["users"] = Owners(np.asarray(self.offsets))
        names = list(inputs)
        for name in names:
            if name not in known:
                reason = f": {_LACKING[name]}" if name in _LACKING else ""
                raise DataError(f"{self.folder} has no {name} that a model can see{reason}")
        return {name: known[name] for name in names}

    def history(self, user_row: int) -> History:
        """A user's events, oldest first, with all that the log knows of them.

        Item rows are int32. What is asked for after an event is not part of a history.
        """
        if not 0 <= user_row < self.num_users:
            raise IndexError(f"user row {user_row} is not from 0 to {self.num_users - 1}")
        there = {
            "times": self.has_times,
            "kinds": self.kinds is not None,
            "context": self.context is not None,
            "users": self.user_features is not None,
        }
        columns = self.columns(["items", *(name for name in there if there[name])])
        part = slice(self.offsets[user_row], self.offsets[user_row + 1])
        return History(**{name: column[part] for name, column in columns.items()})

    def __repr__(self) -> str:
        return (
            f"EventLog({str(self.folder)!r}, users={self.num_users}, items={self.num_items}, "
            f"events={self.num_events})"
        )

    def __copy__(self) -> EventLog:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EventLog:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_temporary:
            raise DataError(
                f"{self.folder} is temporary and goes with this process: to pickle a log, prepare "
                "it with EventLog.prepare(events, FOLDER); a model is kept by save_pretrained"
            )
        return _open_same, (str(self.folder.resolve()), self.digest)

    def _array(self, name: str, length: int, dtypes: tuple[str, ...], *columns: int) -> np.ndarray:
        path = self._places[EVENTS] / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error
        if array.shape != (length, *columns) or str(array.dtype) not in dtypes:
            raise DataError(
                f"{path} is damaged: it holds {array.dtype} {list(array.shape)}, and {LOG_FILE} "
                f"speaks of {' or '.join(dtypes)} {[length, *columns]}"
            )
        return array

    def _vocabulary(self, name: str, size: int) -> Vocabulary:
        vocabulary = Vocabulary.open(self._places[name])
        if vocabulary.size != size:
            raise DataError(
                f"{self._places[name]} is damaged: it has {vocabulary.size} ids, and {LOG_FILE} "
                f"speaks of {size}"
            )
        return vocabulary

    def _features(self, name: str, rows: int) -> FeatureTable | None:
        if not self._description.get(FEATURE_TABLES[name]):
            return None
        features = FeatureTable.open(self._places[name] / FEATURES)
        if features.num_rows != rows:
            raise DataError(
                f"{self._places[name] / FEATURES} is damaged: it has {features.num_rows} rows, "
                f"and {LOG_FILE} speaks of {rows} {name}"
            )
        return features

    def _check_offsets(self) -> None:
        offsets = self.offsets
        rising = all(
            (np.diff(offsets[start : start + USERS_AT_ONCE + 1]) >= 1).all()
            for start in range(0, len(offsets), USERS_AT_ONCE)
        )
        if offsets[0] != 0 or offsets[-1] != len(self.items) or not rising:
            raise DataError(
                f"{self._places[EVENTS] / 'offsets.npy'} is damaged: it must rise from 0 to "
                f"{len(self.items)}, the number of events"
            )


def _open_same(folder: str, digest: str) -> EventLog:
    """The log that was pickled; DataError where another one has taken its place."""
    log = EventLog(folder)
    if log.digest != digest:
        raise DataError(f"{folder} has changed since this log was pickled: it holds other data")
    return log


# Why a log does not have an input.
_LACKING = {
    **dict.fromkeys(("times", "asked"), "its times tell an order and nothing else"),
    **dict.fromkeys(("kinds", "asked_kinds"), "it was prepared without a column of kinds"),
    "context": "it was prepared without columns of context",
    "users": "it was prepared without a table of users",
}
