"""A prepared log of events: memory-mapped arrays, opened without reading them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.vocabulary import Vocabulary, read_description
from blossomrec.errors import DataError

LOG_FORMAT = 1
LOG_FILE = "log.json"


class EventLog:
    """Histories of all users, one after another, on disk.

    A folder holds ``log.json`` (format, counts, options, what was dropped, summary), the
    vocabularies ``users/`` and ``items/``, and the arrays

    - ``offsets``, int64 [U+1]: where each user's history starts and the last one ends,
    - ``items``, int32 [E]: item rows, by user, then time; equal times in the order of the file
      or shuffled (``summary["ties"]``),
    - ``timestamps``, int64 or float64 [E]: in the unit of the source; datetimes and dates are
      microseconds since 1970 (UTC),
    - ``weights``, float32 [E], if the source gave any.

    Users are in order of id; item rows in falling order of events, then of id, so that row 0 is
    the most popular item.
    """

    def __init__(self, folder: str | Path):
        """Open a prepared folder, as ``EventLog.open``."""
        self.folder = Path(folder)
        self._description = read_description(
            self.folder / LOG_FILE, LOG_FORMAT, "a prepared log of events"
        )
        try:
            events = int(self._description["events"])
            users = int(self._description["users"])
            items = int(self._description["items"])
            self.has_repeats = bool(self._description["has_repeats"])
            self.summary: dict[str, Any] = dict(self._description["summary"])
            has_weights = bool(self._description["weights"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.folder / LOG_FILE} is damaged: {error!r}") from error
        self.offsets = self._array("offsets", users + 1, ("int64",))
        self.items = self._array("items", events, ("int32",))
        self.timestamps = self._array("timestamps", events, ("int64", "float64"))
        self.weights = self._array("weights", events, ("float32",)) if has_weights else None
        self.user_vocabulary = self._vocabulary("users", users)
        self.item_vocabulary = self._vocabulary("items", items)
        self._check_offsets()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> EventLog:
        """The log prepared in ``folder``. Raises DataError where it is missing or damaged."""
        return cls(folder)

    @classmethod
    def prepare(
        cls,
        source: Any,
        folder: str | Path | None = None,
        **options: Any,
    ) -> EventLog:
        """Read, check, filter and sort a table of events and write it to ``folder``.

        source: as of ``read_events``. folder: replaced if it is a prepared log, refused if it is
        anything else that is not empty; None is a temporary folder that lives as long as the log.

        options, all of them by name:

        - ``user``, ``item``, ``timestamp``: columns, ``"user_id"``, ``"item_id"`` and
          ``"timestamp"`` without them. ``weight``: column of weights, which are checked and stored;
          training, evaluation and recommending do not use them yet.
        - ``separator``, ``quote``, ``multiline``, ``normalize_ids``: as of ``read_events``.
        - ``ties``: events of a user with equal times "keep" the order of the table, or are put into
          one that depends on nothing but user, time and item: "shuffle". "auto" shuffles, with a
          warning, where more than 95 % of at least 100 steps between them lead to a higher item id:
          such a table is sorted by id, and its order would tell the next item.
        - ``min_user_events``, ``min_item_events``: users and items with fewer events are dropped,
          again and again until none is left. ``merge_repeats``: of neighbouring events of a user
          with the same item only the first is kept. ``drop_duplicates``: of events with the same
          user, item and timestamp only the first is kept.

        The folder appears once complete; on an error nothing of it is left. Raises DataError, and
        ConfigError for an option that is unknown or wrong.

        >>> log = EventLog.prepare("plays.csv", "log", user="listener", min_user_events=5)
        """
        from blossomrec.data.options import PrepareOptions, with_given
        from blossomrec.data.preparation import prepare_folder

        given = with_given(PrepareOptions, options)
        temporary = None
        if folder is None:
            temporary = tempfile.TemporaryDirectory(
                prefix="blossomrec-", ignore_cleanup_errors=True
            )
            folder = Path(temporary.name) / "log"
        prepare_folder(source, Path(folder), given)
        log = cls(folder)
        log._temporary = temporary
        return log

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
    def timestamp_unit(self) -> str | None:
        """ "microseconds" (since 1970, UTC) if the source had datetimes or dates, else None."""
        return self._description.get("timestamp_unit")

    @property
    def options(self) -> dict[str, Any]:
        """The columns and filters with which the log was prepared."""
        return dict(self._description.get("options", {}))

    def history(self, user_row: int) -> np.ndarray:
        """Item rows of a user's events, oldest first: int32."""
        if not 0 <= user_row < self.num_users:
            raise IndexError(f"user row {user_row} is not from 0 to {self.num_users - 1}")
        return np.asarray(self.items[self.offsets[user_row] : self.offsets[user_row + 1]])

    def __repr__(self) -> str:
        return (
            f"EventLog({str(self.folder)!r}, users={self.num_users}, items={self.num_items}, "
            f"events={self.num_events})"
        )

    def _array(self, name: str, length: int, dtypes: tuple[str, ...]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error
        if array.shape != (length,) or str(array.dtype) not in dtypes:
            raise DataError(
                f"{path} is damaged: it holds {array.dtype} {list(array.shape)}, and {LOG_FILE} "
                f"speaks of {' or '.join(dtypes)} [{length}]"
            )
        return array

    def _vocabulary(self, name: str, size: int) -> Vocabulary:
        vocabulary = Vocabulary.open(self.folder / name)
        if vocabulary.size != size:
            raise DataError(
                f"{self.folder / name} is damaged: it has {vocabulary.size} ids, and {LOG_FILE} "
                f"speaks of {size}"
            )
        return vocabulary

    def _check_offsets(self) -> None:
        offsets = self.offsets
        if offsets[0] != 0 or offsets[-1] != len(self.items) or (np.diff(offsets) < 1).any():
            raise DataError(
                f"{self.folder / 'offsets.npy'} is damaged: it must rise from 0 to "
                f"{len(self.items)}, the number of events"
            )
