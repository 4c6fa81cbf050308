"""What one model version knows of events besides their items: kinds, context and users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blossomrec.data.fields import MISSING, ContextField, EventFields
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError
from blossomrec.serving.refusals import Refusal, shown
from blossomrec.serving.stores.store import Context


class KnownFields:
    """Names of kinds and context, and ids of users, in the numbers of one model version.

    Args:
        fields: that the model sees.
        users: ids of the rows of its table of users; None for none.
        inputs: what the model takes; see :class:`blossomrec.data.history.History`.

    Attributes:
        fields, inputs: as given.
        asks_kind: whether the model is told which kind of event is wanted.
    """

    def __init__(self, fields: EventFields, users: Vocabulary | None, inputs: Sequence[str]):
        self.fields, self._users, self.inputs = fields, users, inputs
        self.asks_kind = "asked_kinds" in inputs
        self._columns = {each.name: each for each in self.fields.context}
        if users is not None:
            # Ids are read before anybody waits for them.
            users.rows([])

    def kind(self, name: str | None) -> int:
        """Number of the kind of event that is wanted; 0 for any, and for a model without kinds.

        Raises:
            Refusal: 422, the model knows kinds, but not this one.
        """
        if not self.fields.kinds:
            return 0
        try:
            return self.fields.kind(name)
        except DataError as error:
            raise Refusal(422, "unknown_kind", str(error), field="kind", value=name) from error

    def check_event(
        self, kind: tuple[str, str | None], context: tuple[str, Context | None], *, refuse: bool
    ) -> None:
        """Check the kind and the context of an event, each with the name of its field.

        Args:
            refuse: what the model does not know, too.

        Raises:
            Refusal: 422, a number is wanted and another value given, or a value is refused.
        """
        where, values = context
        for name, value in (values or {}).items():
            field = f"{where}.{name}"
            column = self._columns.get(name)
            if column is not None and column.kind == "number" and isinstance(value, str):
                message = f"{field} is {shown(value)}: it is a number in the events of the model"
                raise Refusal(422, "invalid", message, field=field, value=value)
            if refuse and (unknown := self.fields.unknown(None, {name: value})):
                raise _unknown(field, unknown, value)
        if refuse and (unknown := self.fields.unknown(kind[1], None)):
            raise _unknown(kind[0], unknown, kind[1])

    def columns(
        self,
        count: int,
        user: str | None,
        kinds: Sequence[str | None] | None,
        contexts: Sequence[Context | None] | None,
    ) -> dict[str, np.ndarray]:
        """Arrays of so many events of a user, those that the model takes; see :class:`History`."""
        found = dict[str, np.ndarray]()
        if "kinds" in self.inputs:
            none = kinds is None
            found["kinds"] = np.zeros(count, np.int64) if none else self.fields.kind_numbers(kinds)
        if "context" in self.inputs:
            found["context"] = self._context(count, contexts)
        if "users" in self.inputs:
            found["users"] = np.full(count, self._user(user))
        return found

    def _context(self, count: int, contexts: Sequence[Context | None] | None) -> np.ndarray:
        rows = np.full((count, len(self.fields.context)), MISSING, np.float32)
        for row, values in zip(rows, contexts or (), strict=False):
            if values:
                row[:] = [_number(each, values) for each in self.fields.context]
        return rows

    def _user(self, user: str | None) -> int:
        """Row of a user, -1 for one who is not in the table."""
        if self._users is None or user is None:
            return -1
        return int(self._users.rows([user])[0])


def _number(column: ContextField, values: Mapping[str, Any]) -> float:
    """A stored value as a model sees it; of another type than the column's, it is missing."""
    try:
        return column.number(values.get(column.name))
    except DataError:
        return MISSING


def _unknown(field: str, unknown: str, value: Any) -> Refusal:
    message = f"{field} is {shown(value)}: the model does not know {unknown}"
    return Refusal(422, "unknown_value", message, field=field, value=value)
