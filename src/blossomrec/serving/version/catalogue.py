"""External ids of the items of one model version, and their titles."""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from blossomrec.data.reading.columns import Column
from blossomrec.data.reading.ids import read_ids
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError
from blossomrec.serving.given import check_text
from blossomrec.serving.refusals import Refusal, shown, unknown_item

ItemId = int | str
LARGEST_STORED = 2**63 - 1
# Ids taken in at a time.
PIECE = 8_192


class Catalogue:
    """Ids <-> rows of the items, as a :class:`Vocabulary`, whose tables are made once.

    Args:
        ids: distinct ids of one type, integers or strings, in order of row.
    """

    def __init__(self, ids: Sequence[ItemId] | pl.Series):
        self._ids, self._rows = list[ItemId](), dict[ItemId, int]()
        for start in range(0, len(ids), PIECE):
            self._add(list(ids[start : start + PIECE]))
        self._numbers = bool(self._ids) and isinstance(self._ids[0], int)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Catalogue:
        """The same ids."""
        return cls(vocabulary.read())

    def _add(self, ids: list[ItemId]) -> None:
        self._rows.update(zip(ids, range(len(self._ids), len(self._ids) + len(ids)), strict=True))
        self._ids += ids
        # While a new run is read, threads that answer wait no longer than for a piece.
        time.sleep(0)

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, item: ItemId) -> int:
        """Row of an item, -1 where it is unknown; ``"12"`` is 12 and the other way round."""
        return self._rows.get(self.spelt(item), -1)

    def rows(self, items: Sequence[ItemId]) -> np.ndarray:
        """Rows of items, -1 where one is unknown, int64 [len(items)]."""
        return np.fromiter(map(self.row, items), np.int64, len(items))

    def known_rows(self, items: Sequence[ItemId], field: str) -> np.ndarray:
        """Rows of items that must all be known, int64 [len(items)].

        Raises:
            Refusal: 422 naming the first unknown one as ``field[index]``.
        """
        rows = self.rows(items)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise unknown_item(f"{field}[{unknown[0]}]", items[unknown[0]])
        return rows

    def known(self, items: Iterable[ItemId]) -> np.ndarray:
        """Rows of those items that are known, int64, in their order."""
        rows = self.rows(list(items))
        return rows[rows >= 0]

    def unknown(self, items: Iterable[ItemId]) -> list[ItemId]:
        """Those items that are not known, each once, in their order, as :meth:`spelt`."""
        return list(dict.fromkeys(self.spelt(one) for one in items if self.row(one) < 0))

    def stored(self, item: ItemId, field: str, *, keep: bool) -> ItemId:
        """An item's id as it stands here, or would, in a form that every store takes.

        Args:
            field: where it comes from.
            keep: an item that is not known is taken, too.

        Raises:
            Refusal: 422, the item is not known and not to be kept, or what is to be kept is no id.
        """
        found = self.spelt(item)
        if self.row(item) < 0:
            if not keep:
                raise unknown_item(field, item)
            try:
                check_text(str(found))
            except ValueError as error:
                message = f"{field} is {shown(item)}: {error}"
                raise Refusal(422, "invalid", message, field=field, value=item) from error
        return found if isinstance(found, str) or found <= LARGEST_STORED else str(found)

    def shown(self, item: ItemId) -> ItemId:
        """The id of a stored item as it stands here; of one that is not known as it is stored."""
        return self.spelt(item) if self.row(item) >= 0 else item

    def spelt(self, item: ItemId) -> ItemId:
        """An id in the type of the ids here, if it can be: as a larger catalogue will have it."""
        if isinstance(item, int):
            return item if self._numbers else str(item)
        return int(item) if self._numbers and len(item) <= 20 and _is_integer(item) else item

    def id(self, row: int) -> ItemId:
        """External id of a row."""
        return self._ids[row]


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    # isdecimal alone takes digits of every script, and int() leading zeros.
    plain = digits.isascii() and digits.isdecimal()
    return plain and (digits[0] != "0" or text == "0")


MAX_TITLE = 200
SHOWN_IDS = 3
# Suffix of a text file -> separator. Those with tabs quote nothing.
TEXT_FILES = {".csv": ",", ".tsv": "\t", ".item": "\t"}
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_ERRORS = (OSError, UnicodeDecodeError, csv.Error, *_POLARS_ERRORS)


def read_titles(path: Path) -> dict[str, str]:
    """Titles by item id as text, from a table of items.

    The table is a Parquet file (.parquet) or a text file with a header (.csv, .tsv, or RecBole's
    .item, whose header is ``name:type``). It has a column ``item_id``, of ids as the reading of
    events takes them, and a column ``title``, or one alone whose name ends in ``_title``. Other
    columns are ignored, items without a title left out, and titles cut after 200 characters. Of
    several titles of an item the first one holds, with a warning.

    Raises:
        DataError: the file cannot be read, has no titles, lacks a column, or holds something else
            than ids and text; the message names the file and, where there is one, the row.
    """
    suffix = path.suffix.lower()
    if suffix != ".parquet" and suffix not in TEXT_FILES:
        known = ", ".join([".parquet", *TEXT_FILES])
        raise DataError(f"{path} ends in {suffix or 'no suffix'!r}: known are {known}")
    try:
        ids, titles = _read_parquet(path) if suffix == ".parquet" else _read_text(path, suffix)
    except _ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path} cannot be read: {reason}") from error
    if len(ids) == 0:
        raise DataError(f"{path} has no items: it has columns, but no rows")
    named = read_ids(Column(str(path), ids.name, ids, textual=suffix in TEXT_FILES))
    return _by_id(path, named.cast(pl.String), _texts(path, titles))


def count_titles(titles: Mapping[str, str], catalogue: Catalogue, source: Path) -> int:
    """How many items of a model have a title.

    Raises:
        DataError: none has one: the ids of the table ``source`` are others.
    """
    found = sum(catalogue.row(item) >= 0 for item in titles)
    if not found:
        theirs = ", ".join(map(repr, islice(titles, SHOWN_IDS)))
        rows = range(min(SHOWN_IDS, len(catalogue)))
        ours = ", ".join(repr(str(catalogue.id(row))) for row in rows)
        raise DataError(
            f"{source} has no title for any item of the model: its ids are {theirs}, ..., "
            f"those of the model {ours}, ..."
        )
    return found


def _read_parquet(path: Path) -> tuple[pl.Series, pl.Series]:
    table = pl.scan_parquet(path, glob=False)
    names = table.collect_schema().names()
    wanted = [names[index] for index in _columns(path, names)]
    found = table.select(wanted).collect()
    return found[wanted[0]], found[wanted[1]]


def _read_text(path: Path, suffix: str) -> tuple[pl.Series, pl.Series]:
    separator = TEXT_FILES[suffix]
    quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    ids: list[str] = []
    titles: list[str | None] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Strict: a quote that is never closed is an error, not the end of all rows.
        lines = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
        header = next(lines, [])
        if suffix == ".item":
            header = [name.partition(":")[0] for name in header]
        item, title = _columns(path, header)
        for fields in filter(None, lines):
            # A line may be shorter than the header.
            found = [fields[at] if at < len(fields) else "" for at in (item, title)]
            if any("\n" in text or "\r" in text for text in found):
                shown = "\n".join(found)[:MAX_TITLE]
                raise DataError(
                    f"{path}, line {lines.line_num}: {shown!r} runs over a line end: is a quote "
                    "missing?"
                )
            ids.append(found[0])
            titles.append(found[1])
    return pl.Series(header[item], ids, pl.String), pl.Series(header[title], titles, pl.String)


def _columns(path: Path, names: Sequence[str]) -> tuple[int, int]:
    """Where ids and titles stand."""
    there = f"its columns are {', '.join(map(repr, names))}" if names else "it is empty"
    if "item_id" not in names:
        raise DataError(f"{path} has no column 'item_id': {there}")
    ending = [name for name in names if name.endswith("_title")]
    if "title" not in names and len(ending) != 1:
        raise DataError(f"{path} has no column 'title': {there}")
    return names.index("item_id"), names.index("title" if "title" in names else ending[0])


def _texts(path: Path, titles: pl.Series) -> pl.Series:
    if titles.dtype in (pl.Categorical, pl.Enum, pl.Null):
        titles = titles.cast(pl.String)
    if titles.dtype != pl.String:
        Column(str(path), titles.name, titles).refuse_type("strings")
    return titles.str.strip_chars()


def _by_id(path: Path, ids: pl.Series, titles: pl.Series) -> dict[str, str]:
    named: dict[str, str] = {}
    others = []
    for item, title in zip(ids, titles, strict=True):
        if title and named.setdefault(item, title[:MAX_TITLE]) != title[:MAX_TITLE]:
            others.append((item, title))
    if not named:
        raise DataError(f"{path} has no titles: its column {titles.name!r} is empty")
    if others:
        item, title = others[0]
        warnings.warn(
            f"{path}: {len(others)} rows have another title for an item named before, such as "
            f"{title!r} for {item!r}, which is {named[item]!r}; the first one holds",
            stacklevel=3,
        )
    return named
