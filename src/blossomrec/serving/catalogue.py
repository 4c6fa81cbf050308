"""External ids of the items of one model version, one at a time and fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from blossomrec.data.vocabulary import Vocabulary
from blossomrec.serving.refusals import unknown_item

ItemId = int | str


class Catalogue:
    """Ids <-> rows of the items, as a :class:`Vocabulary`, whose tables are made once.

    Args:
        ids: distinct ids of one type, integers or strings, in order of row.
    """

    def __init__(self, ids: Sequence[ItemId]):
        self._ids = list(ids)
        self._rows = {one: row for row, one in enumerate(self._ids)}
        self._numbers = bool(self._ids) and isinstance(self._ids[0], int)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Catalogue:
        """The same ids."""
        return cls(vocabulary.ids(np.arange(vocabulary.size)).to_list())

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, item: ItemId) -> int:
        """Row of an item, -1 where it is unknown; ``"12"`` is 12 and the other way round."""
        if self._numbers and isinstance(item, str):
            # isdecimal alone takes digits of every script, and int() leading zeros.
            number = int(item) if len(item) <= 20 and _is_integer(item) else None
            return -1 if number is None else self._rows.get(number, -1)
        if not self._numbers and isinstance(item, int):
            item = str(item)
        return self._rows.get(item, -1)

    def rows(self, items: Sequence[ItemId], field: str) -> np.ndarray:
        """Rows of items that must all be known, int64 [len(items)].

        Raises:
            Refusal: 422 naming the first unknown one as ``field[index]``.
        """
        rows = np.fromiter(map(self.row, items), np.int64, len(items))
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise unknown_item(f"{field}[{unknown[0]}]", items[unknown[0]])
        return rows

    def known(self, items: Iterable[ItemId]) -> np.ndarray:
        """Rows of those items that are known, int64, in their order."""
        rows = np.fromiter(map(self.row, items), np.int64)
        return rows[rows >= 0]

    def id(self, row: int) -> ItemId:
        """External id of a row."""
        return self._ids[row]


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    plain = digits.isascii() and digits.isdecimal()
    return plain and (digits[0] != "0" or text == "0")
