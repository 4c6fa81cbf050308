"""Histories of a log as a model sees them, which may know other items than the log."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from blossomrec.config import shortened
from blossomrec.data.log import EventLog
from blossomrec.data.vocabulary import Vocabulary, as_ids
from blossomrec.errors import DataError


class KnownHistories:
    """The histories of a log in the rows of a model's items; events of other items are left out.

    The log may be any: items meet by their external ids.
    """

    def __init__(self, log: EventLog, items: Vocabulary):
        self.log, self._items = log, items

    def history(self, user_row: int) -> np.ndarray:
        """Rows of the known items of a user, oldest first: int [n], n may be 0."""
        history = self.log.history(user_row)
        if self._rows is None:
            return history
        rows = self._rows[history]
        return rows[rows >= 0]

    def unknown(self, user_rows: np.ndarray) -> tuple[int, int, pl.Series]:
        """Of the events of users: how many are of unknown items, how many in all; these items."""
        offsets = np.asarray(self.log.offsets)
        lengths = offsets[user_rows + 1] - offsets[user_rows]
        if self._rows is None or (self._rows >= 0).all():
            return 0, int(lengths.sum()), self.log.item_vocabulary.ids([])
        counts = np.zeros(self.log.num_items, dtype=np.int64)
        for row in user_rows:
            np.add.at(counts, self.log.history(row), 1)
        counts[self._rows >= 0] = 0
        strangers = np.flatnonzero(counts)
        return int(counts.sum()), int(lengths.sum()), self.log.item_vocabulary.ids(strangers)

    def warn_of_unknown(self, user_rows: np.ndarray) -> None:
        """Tell which events of users are left out, for whom asked for recommendations."""
        unknown, events, items = self.unknown(user_rows)
        if unknown:
            shown = shown_ids(items.head(5).to_list(), total=len(items))
            warnings.warn(
                f"{unknown:,} of {events:,} events of these users are of items that the model does "
                f"not know, and are skipped: {shown}",
                stacklevel=3,
            )

    @cached_property
    def _rows(self) -> np.ndarray | None:
        """For every item of the log the model's row, or -1; None where all rows are the same."""
        known = self.log.item_vocabulary
        if known.fingerprint == self._items.fingerprint:
            return None
        return self._items.rows(known.read())


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
