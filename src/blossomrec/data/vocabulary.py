"""External ids on one side, row numbers on the other."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.id_arrays import (
    IDS_FILE,
    IdArrays,
    NumberIds,
    ids_in,
    ids_of,
    open_ids,
    write_ids,
)
from blossomrec.data.id_index import KEYS_FILE, ROWS_FILE, IdIndex, write_index
from blossomrec.data.windows import each_once
from blossomrec.device import refuse_lost_threads
from blossomrec.errors import DataError
from blossomrec.files import new_folder, read_json, remove, write_json

if TYPE_CHECKING:
    import polars as pl

# Ids in a table; whole numbers as an array; any ids as arrays, with an index of them.
_TABLE_FORMAT, _ARRAY_FORMAT, _INDEXED_FORMAT = 1, 2, 3
_DTYPES = ("Int64", "UInt64", "String")
_TABLE_FILE, _DESCRIPTION = "ids.parquet", "vocabulary.json"


class Vocabulary:
    """Ids of users or items and their rows 0..size-1; integers stay integers, strings strings.

    ``size`` and ``fingerprint`` (of all ids, their order and type) are known without reading the
    ids. Those of a folder are memory-mapped, and checked when first asked for, also where the
    folder was removed or replaced since: in memory are the pages that the system keeps of them.
    A lookup takes a search among hashes that lie on disk in order. It never changes: a deep copy
    is the same object. Pickling takes the ids along.
    """

    def __init__(self, ids: pl.Series | np.ndarray):
        """ids: distinct ids without nulls, of type Int64, UInt64 or String, or an int64 array, in
        order of row."""
        if isinstance(ids, np.ndarray):
            if ids.dtype != np.int64 or ids.ndim != 1:
                raise TypeError(f"ids are {ids.dtype} {list(ids.shape)}: int64 [n] is needed")
            distinct = len(each_once(ids)) == len(ids)
        else:
            if str(ids.dtype) not in _DTYPES:
                raise TypeError(f"ids are {ids.dtype}: one of {', '.join(_DTYPES)} is needed")
            distinct = not ids.null_count() and ids.n_unique() == len(ids)
        if not distinct:
            raise ValueError("ids must be distinct and not null")
        self._ids: IdArrays | None = ids_of(ids)
        self._table: mmap.mmap | None = None
        self._folder: Path | None = None
        self._index: IdIndex | None = None
        self._told_index: str | None = None
        self.size = len(ids)
        self.dtype = self._ids.dtype
        self.fingerprint = self._ids.fingerprint()

    def rows(self, ids: Any) -> np.ndarray:
        """Rows of ``ids``, -1 for those unknown: int64 [len(ids)].

        ids: as of :func:`as_ids`. ``"12"`` stands for the integer 12, and 12 for the string
        ``"12"``.

        Raises:
            DataError: they are no list of ids; or as of :meth:`read`.
        """
        listed = as_ids(ids)
        if self.dtype == "String":
            return self._rows(ids_of([str(one) for one in listed]))
        limits = np.iinfo(np.uint64 if self.dtype == "UInt64" else np.int64)
        numbers = [_number(one) for one in listed]
        possible = [one is not None and limits.min <= one <= limits.max for one in numbers]
        wanted = [one if there else 0 for one, there in zip(numbers, possible, strict=True)]
        found = self._rows(ids_of(np.array(wanted, limits.dtype)))
        return np.where(np.array(possible, bool), found, -1)

    def rows_of(self, others: Vocabulary) -> np.ndarray:
        """For every row of another vocabulary the row of the same id, or -1: int64.

        As :meth:`rows`, some of the ids at a time.
        """
        if self.fingerprint == others.fingerprint:
            return np.arange(self.size)
        found = np.empty(others.size, np.int64)
        start = 0
        for part in others.known().parts():
            alike = part.dtype == self.dtype
            rows = self._rows(part) if alike else self.rows(part.to_list())
            found[start : start + len(part)] = rows
            start += len(part)
        return found

    def ids(self, rows: Any) -> pl.Series:
        """Ids of ``rows`` (integers 0..size-1), in the vocabulary's own type."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.size):
            raise IndexError(f"rows must be from 0 to {self.size - 1}")
        return self.known().take(rows).series()

    def begins_with(self, size: int, fingerprint: str) -> bool:
        """Whether there are more than ``size`` ids, and the first ones are those of another
        vocabulary, by its fingerprint."""
        return self.size > size and self.known().part(0, size).fingerprint() == fingerprint

    def save(self, folder: str | Path) -> None:
        """Write the ids, an index of them, and ``vocabulary.json``; the latter last, once all is
        there."""
        known = self.known()
        write_vocabulary(Path(folder), self.dtype, known.parts(), self.fingerprint)

    @classmethod
    def open(cls, folder: str | Path) -> Vocabulary:
        """The vocabulary saved in ``folder``. Raises DataError where it is missing or damaged."""
        folder = Path(folder)
        path = folder / _DESCRIPTION
        description = read_description(path, _INDEXED_FORMAT, "a vocabulary")
        vocabulary = cls.__new__(cls)
        vocabulary.size = natural(description, "size", path)
        vocabulary.dtype = text(description, "dtype", path)
        vocabulary.fingerprint = text(description, "fingerprint", path)
        vocabulary._ids = vocabulary._index = vocabulary._table = None
        vocabulary._folder, vocabulary._told_index = folder, None
        if description["format"] == _TABLE_FORMAT:
            vocabulary._table = _mapped(folder / _TABLE_FILE)
            return vocabulary
        try:
            vocabulary._ids = open_ids(folder, vocabulary.dtype)
            if len(vocabulary._ids) != vocabulary.size:
                raise ValueError(f"it has {len(vocabulary._ids)} ids, not {vocabulary.size}")
            if description["format"] == _INDEXED_FORMAT:
                vocabulary._index = IdIndex.open(folder, vocabulary.size)
                vocabulary._told_index = text(description, "index", path)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} is missing or damaged: {error}") from error
        return vocabulary

    def known(self) -> IdArrays:
        """All ids in order of row, as arrays.

        Raises:
            DataError, RunError: as of :meth:`read`.
        """
        # Taken once, the folder last: another thread may come to the end meanwhile.
        table, ids, folder = self._table, self._ids, self._folder
        if folder is None:
            assert self._ids is not None
            return self._ids
        if table is not None:
            refuse_lost_threads(str(folder))
            ids = ids_of(self._read(folder / _TABLE_FILE, bytes(table)))
        assert ids is not None
        if ids.fingerprint() != self.fingerprint:
            name = IDS_FILE if table is None else _TABLE_FILE
            raise DataError(f"{folder} is damaged: {name} does not belong to {_DESCRIPTION}")
        if self._told_index is not None:
            # An id that is not found would become another one in a log that grows.
            assert self._index is not None
            if self._index.fingerprint() != self._told_index:
                raise DataError(
                    f"{folder} is damaged: {KEYS_FILE} or {ROWS_FILE} does not belong to "
                    f"{_DESCRIPTION}"
                )
        self._ids = ids
        # That there is no folder says that the ids are there, and comes last for other threads.
        self._table = None
        self._folder = None
        return ids

    def listed(self) -> pl.Series | np.ndarray:
        """All ids in order of row: whole numbers are an array, which needs no polars.

        Raises:
            DataError, RunError: as of :meth:`read`.
        """
        known = self.known()
        return known.values if isinstance(known, NumberIds) else known.series()

    def read(self) -> pl.Series:
        """All ids in order of row, read anew each time.

        Raises:
            DataError: they are damaged, or are not those that ``vocabulary.json`` speaks of.
            RunError: this is a forked process, which cannot read those that are in a table.
        """
        return self.known().series()

    def _rows(self, wanted: IdArrays) -> np.ndarray:
        known = self.known()
        if self._index is None:
            self._index = IdIndex.of(known)
        return self._index.rows(known, wanted)

    def _read(self, path: Path, content: bytes) -> pl.Series:
        import polars as pl

        try:
            # Looked at first: a small file can hold one id a thousand million times.
            table = pl.scan_parquet(io.BytesIO(content))
            told = str(table.collect_schema().get("id")), table.select(pl.len()).collect().item()
            ids = pl.read_parquet(content)["id"] if told == (self.dtype, self.size) else None
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise DataError(f"{path} is damaged: {error}") from error
        if ids is None or ids.null_count():
            raise DataError(
                f"{path.parent} is damaged: {path.name} does not belong to {_DESCRIPTION}"
            )
        return ids

    def __copy__(self) -> Vocabulary:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Vocabulary:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        known = self.known()
        arrays = {name: np.array(each) for name, each in known.arrays().items()}
        return _unpickled, (self.dtype, arrays, self.fingerprint)


def _unpickled(dtype: str, arrays: dict[str, np.ndarray], fingerprint: str) -> Vocabulary:
    vocabulary = Vocabulary.__new__(Vocabulary)
    vocabulary._ids = ids_in(dtype, arrays)
    vocabulary._index = vocabulary._table = vocabulary._folder = vocabulary._told_index = None
    vocabulary.size, vocabulary.dtype = len(vocabulary._ids), dtype
    vocabulary.fingerprint = fingerprint
    return vocabulary


def write_vocabulary(
    folder: Path, dtype: str, parts: Iterable[IdArrays], fingerprint: str | None = None
) -> Vocabulary:
    """Write a vocabulary whose ids, each there once, come in parts; the one that was written.

    Memory is that of a part.

    Args:
        folder: it may hold another one, which is replaced.
        dtype: "Int64", "UInt64" or "String".
        fingerprint: of the ids, where that is known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with new_folder(folder / ".new") as place:
        write_ids(place, dtype, parts)
        ids = open_ids(place, dtype)
        write_index(ids, place)
        description = {
            "format": _INDEXED_FORMAT,
            "size": len(ids),
            "dtype": dtype,
            "fingerprint": fingerprint or ids.fingerprint(),
            "index": IdIndex.open(place, len(ids)).fingerprint(),
        }
    # The description last: without it there is no vocabulary.
    for path in sorted((folder / ".new").iterdir()):
        os.replace(path, folder / path.name)
    remove(folder / ".new")
    remove(folder / _TABLE_FILE)
    write_json(folder / _DESCRIPTION, description)
    return Vocabulary.open(folder)


def as_ids(given: Any, what: str = "id", *, ordered: bool = False) -> list[int | str]:
    """The ids that a caller gave, as whole numbers and strings of Python.

    Args:
        given: a list, tuple, set, iterator, array, tensor or series of whole numbers and strings,
            of Python or NumPy; categories count as strings.
        what: is listed, such as "user": a word for messages.
        ordered: the order tells something, so that a set, which has none, is refused.

    Raises:
        DataError: it is no list, such as the text ``"12"``, or something in it is no id, such as
            12.0, NaN, None or True; the message names the value and its place.
    """
    listed = _listed(given, what, ordered=ordered)
    for place, one in enumerate(listed):
        kind = type(one)
        if kind is int or kind is str:
            continue
        if isinstance(one, np.integer):
            listed[place] = int(one)
        elif isinstance(one, str):
            listed[place] = str(one)
        elif isinstance(one, int) and kind is not bool:
            listed[place] = int(one)
        else:
            raise DataError(
                f"{what}[{place}] is {_shown(one)}: an id is a whole number or text, such as 12 "
                "or '12'"
            )
    return listed


def _listed(given: Any, what: str, *, ordered: bool) -> list[Any]:
    """A list of what a caller gave, whatever is in it."""
    if isinstance(given, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(given, "columns"):
        raise DataError(_no_list(given, what))
    if ordered and isinstance(given, Set):
        raise DataError(f"{_shown(given)} has no order: give a list of {what}s, oldest first")
    if getattr(given, "ndim", 1) != 1:
        raise DataError(f"ids of {what}s have {given.ndim} dimensions: a list is needed")
    for convert in ("to_list", "tolist"):
        if hasattr(given, convert):
            return list(getattr(given, convert)())
    try:
        return list(given)
    except TypeError as error:
        raise DataError(_no_list(given, what)) from error


def _no_list(given: Any, what: str) -> str:
    advice = f", such as [{_shown(given)}]" if isinstance(given, (str, int)) else ""
    return f"{_shown(given)} is not a list of ids: give a list of {what}s{advice}"


def _shown(value: Any, limit: int = 60) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def _number(one: int | str) -> int | None:
    """A whole number, also written as text just as it is printed; None for other text."""
    if isinstance(one, int):
        return one
    digits = one.removeprefix("-")
    # isdecimal alone takes the digits of every script; int() takes blanks and leading zeros.
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        return None
    number = int(one)
    return number if str(number) == one else None


def read_description(path: Path, newest: int, what: str) -> dict[str, Any]:
    """The JSON object that describes a saved folder, refused when of a format after ``newest``."""
    try:
        description = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path.parent} is not {what}: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise DataError(f"{path} is damaged: it names no format version")
    if version > newest:
        raise DataError(
            f"{path} has format {version}, written by a newer blossomrec: this one reads up to "
            f"format {newest}"
        )
    return description


def natural(description: Mapping[str, Any], name: str, path: Path) -> int:
    """A whole number from 0 of a description; DataError names the file where it is none."""
    value = description.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise DataError(f"{path} is damaged: {name} is {_shown(value)}, not a whole number")
    return value


def text(description: Mapping[str, Any], name: str, path: Path) -> str:
    """A string of a description; DataError names the file where it is none."""
    value = description.get(name)
    if not isinstance(value, str):
        raise DataError(f"{path} is damaged: {name} is {_shown(value)}, not text")
    return value


def _mapped(path: Path) -> mmap.mmap:
    """The content of a file, which stays when another one takes its name."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged: {error}") from error
