"""External ids on one side, row numbers on the other."""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.windows import each_once
from blossomrec.device import refuse_lost_threads
from blossomrec.errors import DataError
from blossomrec.files import read_json, replacing, write_json

if TYPE_CHECKING:
    import polars as pl

# Ids in a table; ids that are an array of whole numbers, which earlier versions do not read.
_TABLE_FORMAT, _ARRAY_FORMAT = 1, 2
_DTYPES = ("Int64", "UInt64", "String")
# As text of Python, each takes many times its bytes.
_IDS_AT_ONCE = 1_000_000


class Vocabulary:
    """Ids of users or items and their rows 0..size-1; integers stay integers, strings strings.

    ``size`` and ``fingerprint`` (of all ids, their order and type) are known without reading the
    ids; those are read, with polars, when first asked for, also where the folder was removed or
    replaced since. It never changes: a deep copy is the same object. Pickling takes the ids along.

    Ids that were given as an array stay one, also on disk, and need no polars.
    """

    def __init__(self, ids: pl.Series | np.ndarray):
        """ids: distinct ids without nulls, of type Int64, UInt64 or String, or an int64 array, in
        order of row."""
        self._array: np.ndarray | None = None
        if isinstance(ids, np.ndarray):
            self._take_array(ids)
            return
        if str(ids.dtype) not in _DTYPES:
            raise TypeError(f"ids are {ids.dtype}: one of {', '.join(_DTYPES)} is needed")
        if ids.null_count() or ids.n_unique() != len(ids):
            raise ValueError("ids must be distinct and not null")
        self._ids: pl.Series | None = ids.alias("id")
        self._content: mmap.mmap | None = None
        self._folder: Path | None = None
        self._index: _Index | None = None
        self.size = len(ids)
        self.dtype = str(ids.dtype)
        self.fingerprint = _fingerprint(ids)

    def _take_array(self, ids: np.ndarray) -> None:
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise TypeError(f"ids are {ids.dtype} {list(ids.shape)}: int64 [n] is needed")
        if len(each_once(ids)) != len(ids):
            raise ValueError("ids must be distinct and not null")
        self._array, self._ids, self._content, self._folder = ids, None, None, None
        self._index = None
        self.size, self.dtype, self.fingerprint = len(ids), "Int64", _fingerprint(ids)

    def rows(self, ids: Any) -> np.ndarray:
        """Rows of ``ids``, -1 for those unknown: int64 [len(ids)].

        ids: as of :func:`as_ids`. ``"12"`` stands for the integer 12, and 12 for the string
        ``"12"``.

        Raises:
            DataError: they are no list of ids.
        """
        known = self.listed()
        if self._index is None:
            self._index = _Index(known)
        return self._index.rows(as_ids(ids))

    def ids(self, rows: Any) -> pl.Series:
        """Ids of ``rows`` (integers 0..size-1), in the vocabulary's own type."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.size):
            raise IndexError(f"rows must be from 0 to {self.size - 1}")
        return self.read().gather(rows)

    def begins_with(self, size: int, fingerprint: str) -> bool:
        """Whether there are more than ``size`` ids, and the first ones are those of another
        vocabulary, by its fingerprint."""
        return self.size > size and _fingerprint(self.listed()[:size]) == fingerprint

    def save(self, folder: str | Path) -> None:
        """Write the ids, ``ids.parquet`` or ``ids.npy``, and ``vocabulary.json``; the latter last,
        once all is there."""
        folder = Path(folder)
        with replacing(folder / ("ids.parquet" if self._array is None else "ids.npy")) as path:
            if self._array is not None:
                with path.open("wb") as file:
                    np.save(file, self._array)
            elif self._ids is not None:
                self._ids.to_frame().write_parquet(path)
            else:
                assert self._content is not None
                path.write_bytes(self._content)
        description = {
            "format": _TABLE_FORMAT if self._array is None else _ARRAY_FORMAT,
            "size": self.size,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
        }
        write_json(folder / "vocabulary.json", description)

    @classmethod
    def open(cls, folder: str | Path) -> Vocabulary:
        """The vocabulary saved in ``folder``. Raises DataError where it is missing or damaged."""
        folder = Path(folder)
        path = folder / "vocabulary.json"
        description = read_description(path, _ARRAY_FORMAT, "a vocabulary")
        vocabulary = cls.__new__(cls)
        vocabulary.size = natural(description, "size", path)
        vocabulary.dtype = text(description, "dtype", path)
        vocabulary.fingerprint = text(description, "fingerprint", path)
        vocabulary._ids = vocabulary._index = vocabulary._array = vocabulary._content = None
        if description["format"] == _ARRAY_FORMAT:
            vocabulary._array = vocabulary._read_array(folder / "ids.npy")
        else:
            vocabulary._content = _mapped(folder / "ids.parquet")
        vocabulary._folder = folder
        return vocabulary

    def _read_array(self, path: Path) -> np.ndarray:
        try:
            ids = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error
        fits = ids.dtype == np.int64 and ids.shape == (self.size,)
        if not fits or _fingerprint(ids) != self.fingerprint:
            raise DataError(f"{path.parent} is damaged: ids.npy does not belong to vocabulary.json")
        return ids

    def listed(self) -> pl.Series | np.ndarray:
        """All ids in order of row, as they are kept: an array needs no polars.

        Raises:
            DataError, RunError: as of :meth:`read`.
        """
        return self.read() if self._array is None else self._array

    def read(self) -> pl.Series:
        """All ids in order of row, read where they have not been.

        Raises:
            DataError: they are damaged, or are not those that ``vocabulary.json`` speaks of.
            RunError: this is a forked process, which cannot read them.
        """
        if self._ids is None and self._array is not None:
            import polars as pl

            self._ids = pl.Series("id", self._array)
        elif self._ids is None:
            assert self._folder is not None and self._content is not None
            refuse_lost_threads(str(self._folder))
            self._ids = self._read(self._folder / "ids.parquet", bytes(self._content))
            self._content = None
        return self._ids

    def _read(self, path: Path, content: bytes) -> pl.Series:
        import polars as pl

        try:
            # Looked at first: a small file can hold one id a thousand million times.
            table = pl.scan_parquet(io.BytesIO(content))
            told = str(table.collect_schema().get("id")), table.select(pl.len()).collect().item()
            ids = pl.read_parquet(content)["id"] if told == (self.dtype, self.size) else None
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise DataError(f"{path} is damaged: {error}") from error
        if ids is None or _fingerprint(ids) != self.fingerprint:
            raise DataError(
                f"{path.parent} is damaged: ids.parquet does not belong to vocabulary.json"
            )
        return ids

    def __copy__(self) -> Vocabulary:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Vocabulary:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (self.listed(),)


class _Index:
    """From ids to rows, without the threads of polars, which a forked process has lost."""

    def __init__(self, ids: pl.Series | np.ndarray):
        self._strings = str(ids.dtype) == "String"
        if isinstance(ids, np.ndarray):
            numbers = ids
        elif self._strings:
            self._rows = {one: row for row, one in enumerate(ids.to_list())}
        else:
            numbers = ids.to_numpy()
        if not self._strings:
            self._order = np.argsort(numbers, kind="stable")
            self._sorted = numbers[self._order]
            limits = np.iinfo(numbers.dtype)
            self._low, self._high = int(limits.min), int(limits.max)

    def rows(self, ids: list[int | str]) -> np.ndarray:
        """Rows of ids, -1 for those unknown."""
        if self._strings:
            rows = (self._rows.get(str(one), -1) for one in ids)
            return np.fromiter(rows, np.int64, len(ids))
        numbers = [_number(one) for one in ids]
        possible = [one is not None and self._low <= one <= self._high for one in numbers]
        wanted = np.array(
            [one if there else 0 for one, there in zip(numbers, possible, strict=True)],
            dtype=self._sorted.dtype,
        )
        if not len(self._sorted):
            return np.full(len(ids), -1)
        places = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        found = np.array(possible, dtype=bool) & (self._sorted[places] == wanted)
        return np.where(found, self._order[places], -1).astype(np.int64)


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


def _fingerprint(ids: pl.Series | np.ndarray) -> str:
    """The same of whole numbers, however they are kept."""
    kind = "Int64" if isinstance(ids, np.ndarray) else str(ids.dtype)
    digest = hashlib.sha256(f"{kind} {len(ids)}\n".encode())
    if not isinstance(ids, np.ndarray) and kind == "String":
        # The lengths make ["ab", "c"] and ["a", "bc"] differ.
        digest.update(ids.str.len_bytes().to_numpy().astype("<u4").tobytes())
        for start in range(0, len(ids), _IDS_AT_ONCE):
            digest.update("".join(ids[start : start + _IDS_AT_ONCE]).encode())
    else:
        array = ids if isinstance(ids, np.ndarray) else ids.to_numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
