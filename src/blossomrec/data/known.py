"""A log in the numbers of a model, which may have been trained on another one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.fields import EventFields
from blossomrec.data.history import History, shown_ids
from blossomrec.data.units import Owners
from blossomrec.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars as pl

    from blossomrec.data.log import EventLog


class KnownHistories:
    """The histories of a log in the numbers of a model; events of other items are left out.

    The log may be any: items and users meet by their external ids, kinds and categories of the
    context by their names. What the model does not know is unknown.

    Args:
        items: the catalogue of the model.
        users: of the table of users that the model sees; None where it sees none.
        fields: the kinds and the context that the model sees.
    """

    def __init__(
        self,
        log: EventLog,
        items: Vocabulary,
        users: Vocabulary | None = None,
        fields: EventFields | None = None,
    ):
        self.log, self._items, self._users = log, items, users
        self.fields = EventFields() if fields is None else fields

    def history(self, user_row: int) -> History:
        """Events of known items of a user, oldest first; there may be none."""
        history = self._translated(self.log.history(user_row), user_row)
        if self._rows is None:
            return history
        rows = self._rows[history.items]
        return replace(history, items=rows)[rows >= 0]

    def _translated(self, history: History, user_row: int) -> History:
        """Kinds, context and user in the numbers of the model."""
        changed = dict[str, np.ndarray | None](kinds=None, asked_kinds=None, context=None)
        changed["users"] = None
        kinds, columns = self._numbers
        if history.kinds is not None and self.fields.kinds:
            changed["kinds"] = kinds[history.kinds]
        if history.context is not None and self.fields.context:
            changed["context"] = _columns(history.context, columns)
        if self._user_rows is not None:
            changed["users"] = np.full(len(history), self._user_rows[user_row], np.int64)
        return replace(history, **changed)

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, list[tuple[int, np.ndarray | None]]]:
        return _translated_numbers(self.log.fields, self.fields)

    @cached_property
    def _user_rows(self) -> np.ndarray | None:
        """For every user of the log the row in the model's table, or -1."""
        if self._users is None:
            return None
        return self._users.rows_of(self.log.user_vocabulary)

    def unknown(self, user_rows: np.ndarray) -> tuple[int, int, pl.Series]:
        """Of the events of users: how many are of unknown items, how many in all; these items."""
        offsets = np.asarray(self.log.offsets)
        lengths = offsets[user_rows + 1] - offsets[user_rows]
        if self._rows is None or (self._rows >= 0).all():
            return 0, int(lengths.sum()), self.log.item_vocabulary.ids([])
        counts = np.zeros(self.log.num_items, dtype=np.int64)
        for row in user_rows:
            np.add.at(counts, self.log.history(row).items, 1)
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
        if self.log.item_vocabulary.fingerprint == self._items.fingerprint:
            return None
        return self._items.rows_of(self.log.item_vocabulary)


def known_columns(
    log: EventLog, inputs: Iterable[str], fields: EventFields, users: Vocabulary | None
) -> dict[str, Any]:
    """The arrays [E] of a log, as of ``EventLog.columns``, in the numbers of a model.

    Items are those of the log.

    Args:
        inputs: of the model.
        fields: the kinds and the context that the model sees.
        users: of the table of users that the model sees; None where it sees none.

    Raises:
        DataError: the log has no such input.
    """
    names = list(inputs)
    known = users is not None and "users" in names
    found: dict[str, Any] = log.columns(name for name in names if not known or name != "users")
    kinds, columns = _translated_numbers(log.fields, fields)
    for name in ("kinds", "asked_kinds"):
        if name in found and log.fields.kinds != fields.kinds:
            found[name] = _Translated(found[name], kinds.__getitem__)
    if "context" in found and not _same_columns(log.fields, fields):
        found["context"] = _Translated(found["context"], lambda rows: _columns(rows, columns))
    if known:
        assert users is not None
        rows = users.rows_of(log.user_vocabulary)
        found["users"] = _Translated(Owners(np.asarray(log.offsets)), rows.__getitem__)
    return found


class _Translated:
    """A column of a log, whose values are translated when they are looked at."""

    def __init__(self, column: Any, translate: Callable[[np.ndarray], np.ndarray]):
        self._column, self._translate = column, translate

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._translate(self._column[rows])


def _same_columns(one: EventFields, other: EventFields) -> bool:
    """Whether contexts have the same columns with the same names of categories."""
    pairs = ([(each.name, each.kind, each.names) for each in of.context] for of in (one, other))
    return next(pairs) == next(pairs)


def _translated_numbers(
    theirs: EventFields, fields: EventFields
) -> tuple[np.ndarray, list[tuple[int, np.ndarray | None]]]:
    """For the kinds of a log those of ``fields``; for each column of the context here the log's,
    -1 for none, and for its categories those here."""
    kinds, categories = fields.translated(theirs)
    places = {each.name: (n, each.kind) for n, each in enumerate(theirs.context)}
    found = [places.get(each.name, (-1, "")) for each in fields.context]
    columns = [
        (place if kind == mine.kind else -1, numbers)
        for (place, kind), mine, numbers in zip(found, fields.context, categories, strict=True)
    ]
    return kinds, columns


def _columns(context: np.ndarray, columns: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray:
    """Contexts, float32 [n, C'], in other columns, with other numbers for categories: [n, C]."""
    found = np.full((len(context), len(columns)), np.nan, np.float32)
    for number, (place, categories) in enumerate(columns):
        if place < 0:
            continue
        values = context[:, place]
        if categories is None:
            found[:, number] = values
        else:
            known = np.nan_to_num(values, nan=0.0).astype(np.int64)
            found[:, number] = np.where(np.isnan(values), np.nan, categories[known])
    return found
