"""Ids as arrays, in memory or memory-mapped: whole numbers, or the bytes of texts."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from blossomrec.data.windows import boundaries, gather_index

if TYPE_CHECKING:
    import polars as pl

# Of many ids, those that are in memory at a time.
IDS_AT_ONCE = 1_000_000
IDS_FILE, OFFSETS_FILE = "ids.npy", "offsets.npy"
_NUMBERS = {"Int64": np.dtype("<i8"), "UInt64": np.dtype("<u8")}
# Texts are hashed a word of each at a time, those of more bytes than _LONG one by one.
_WORD, _LONG = 8, 1_024


class IdArrays(ABC):
    """Ids in order of row.

    Attributes:
        dtype: "Int64", "UInt64" or "String".
    """

    dtype: str

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def part(self, start: int, stop: int) -> IdArrays:
        """Those of neighbouring rows, where they lie."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> IdArrays:
        """Those of some rows, int64, copied."""

    @abstractmethod
    def same(self, other: IdArrays) -> np.ndarray:
        """Whether ids are those of another one of the same type and length, row by row: bool."""

    @abstractmethod
    def hashes(self) -> np.ndarray:
        """Of each id 64 bits that follow from it: uint64."""

    @abstractmethod
    def to_list(self) -> list[Any]:
        """All of them, as numbers or texts of Python."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """What they are kept as, by the names of the files."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all ids, their order and type."""

    def parts(self) -> Iterator[IdArrays]:
        """All of them, ``IDS_AT_ONCE`` at a time."""
        for start in range(0, len(self), IDS_AT_ONCE):
            yield self.part(start, min(start + IDS_AT_ONCE, len(self)))

    def series(self) -> pl.Series:
        """A series of polars that holds them, without the threads of polars."""
        import polars as pl

        dtype = getattr(pl, self.dtype)
        pieces = [pl.Series("id", one.to_list(), dtype=dtype) for one in self.parts()]
        return pl.concat(pieces) if pieces else pl.Series("id", dtype=dtype)


class NumberIds(IdArrays):
    """Whole numbers; values: int64 or uint64 [n]."""

    def __init__(self, values: np.ndarray):
        self._values = values
        self.dtype = "UInt64" if values.dtype == np.uint64 else "Int64"

    @property
    def values(self) -> np.ndarray:
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def part(self, start: int, stop: int) -> NumberIds:
        return NumberIds(self._values[start:stop])

    def take(self, rows: np.ndarray) -> NumberIds:
        return NumberIds(self._values[rows])

    def same(self, other: IdArrays) -> np.ndarray:
        assert isinstance(other, NumberIds)
        return np.asarray(self._values == other._values)

    def hashes(self) -> np.ndarray:
        return mixed(np.ascontiguousarray(self._values).view(np.uint64))

    def to_list(self) -> list[int]:
        return self._values.tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        return {IDS_FILE: self._values}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.dtype} {len(self)}\n".encode())
        for one in self.parts():
            assert isinstance(one, NumberIds)
            digest.update(np.ascontiguousarray(one._values, _NUMBERS[self.dtype]).data)
        return digest.hexdigest()

    def series(self) -> pl.Series:
        import polars as pl

        return pl.Series("id", np.asarray(self._values))


class TextIds(IdArrays):
    """Texts in UTF-8.

    content: uint8, one text after another; offsets: int64 [n+1], where each begins and the last one
    ends.
    """

    dtype = "String"

    def __init__(self, content: np.ndarray, offsets: np.ndarray):
        self._content, self._offsets = content, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def part(self, start: int, stop: int) -> TextIds:
        return TextIds(self._content, self._offsets[start : stop + 1])

    def take(self, rows: np.ndarray) -> TextIds:
        starts = self._offsets[rows]
        lengths = self._offsets[rows + 1] - starts
        return TextIds(self._content[gather_index(starts, lengths)], boundaries(lengths))

    def same(self, other: IdArrays) -> np.ndarray:
        assert isinstance(other, TextIds)
        same = np.diff(self._offsets) == np.diff(other._offsets)
        rows = np.flatnonzero(same)
        one, two = self.take(rows), other.take(rows)
        wrong = boundaries(one._content != two._content)
        same[rows] = wrong[one._offsets[1:]] == wrong[one._offsets[:-1]]
        return same

    def hashes(self) -> np.ndarray:
        offsets = np.asarray(self._offsets) - self._offsets[0]
        starts, lengths = offsets[:-1], np.diff(offsets)
        # So that a word may be read at every byte.
        content = np.zeros(int(offsets[-1]) + _WORD, np.uint8)
        content[:-_WORD] = self._bytes()
        words = np.ndarray(len(content) - _WORD + 1, "<u8", content.data, strides=(1,))
        hashes = mixed(lengths.astype(np.uint64))
        for row in np.flatnonzero(lengths > _LONG).tolist():
            one = content[starts[row] : starts[row] + lengths[row]]
            digest = hashlib.blake2b(one.data, digest_size=_WORD).digest()
            hashes[row] = int.from_bytes(digest, "little")
        left, rows = lengths.copy(), np.flatnonzero((lengths > 0) & (lengths <= _LONG))
        read = 0
        while len(rows):
            word = words[starts[rows] + read]
            unused = _WORD - np.minimum(left[rows], _WORD)
            word &= np.uint64(2**64 - 1) >> (unused * 8).astype(np.uint64)
            hashes[rows] = mixed(hashes[rows] ^ word)
            read += _WORD
            left -= _WORD
            rows = rows[left[rows] > 0]
        return hashes

    def to_list(self) -> list[str]:
        content, offsets = self._bytes().tobytes(), self._offsets - self._offsets[0]
        return [content[start:stop].decode() for start, stop in pairwise(offsets.tolist())]

    def arrays(self) -> dict[str, np.ndarray]:
        return {IDS_FILE: self._bytes(), OFFSETS_FILE: self._offsets - self._offsets[0]}

    def fingerprint(self) -> str:
        # The lengths make ["ab", "c"] and ["a", "bc"] differ.
        digest = hashlib.sha256(f"{self.dtype} {len(self)}\n".encode())
        for one in self.parts():
            assert isinstance(one, TextIds)
            digest.update(np.diff(one._offsets).astype("<u4").data)
        for one in self.parts():
            assert isinstance(one, TextIds)
            digest.update(np.ascontiguousarray(one._bytes()).data)
        return digest.hexdigest()

    def _bytes(self) -> np.ndarray:
        return np.asarray(self._content[self._offsets[0] : self._offsets[-1]])


def ids_of(ids: pl.Series | np.ndarray | list[str]) -> IdArrays:
    """Ids without nulls as arrays; a list is one of texts, also of such that no file can hold."""
    if isinstance(ids, np.ndarray):
        return NumberIds(ids)
    if not isinstance(ids, list) and str(ids.dtype) != "String":
        return NumberIds(ids.to_numpy())
    if isinstance(ids, list):
        # Half a character is no known id, but may be asked for.
        parts = [one.encode("utf-8", "surrogatepass") for one in ids]
        lengths, content = np.fromiter(map(len, parts), np.int64, len(parts)), b"".join(parts)
        return TextIds(np.frombuffer(content, np.uint8), boundaries(lengths))
    content, lengths = list[bytes](), ids.str.len_bytes().to_numpy().astype(np.int64)
    for start in range(0, len(ids), IDS_AT_ONCE):
        content.append((ids[start : start + IDS_AT_ONCE].str.join("").item() or "").encode())
    return TextIds(np.frombuffer(b"".join(content), np.uint8), boundaries(lengths))


def mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on all bits.

    Different values stay different.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ArrayFile:
    """A file of NumPy's whose array [n] is written one piece after another."""

    def __init__(self, path: Path, dtype: Any):
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._length = np.dtype(dtype), 0
        # Its length is not known yet: room for any, in a header that is written again.
        self._write_header(2**62)

    def append(self, array: np.ndarray) -> None:
        """Write the next values."""
        piece = np.ascontiguousarray(array, self._dtype)
        self._file.write(piece.data)
        self._length += len(piece)

    def close(self) -> None:
        """Say how long the array is."""
        self._file.seek(0)
        self._write_header(self._length)
        self._file.close()

    def _write_header(self, length: int) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = repr({"descr": descr, "fortran_order": False, "shape": (length,)})
        self._file.write(np.lib.format.magic(1, 0) + (118).to_bytes(2, "little"))
        self._file.write(header.ljust(117).encode() + b"\n")


def write_ids(folder: Path, dtype: str, parts: Iterable[IdArrays]) -> None:
    """Write ids that come in parts to the files of a folder."""
    text = dtype == TextIds.dtype
    ids = ArrayFile(folder / IDS_FILE, np.uint8 if text else _NUMBERS[dtype])
    offsets = ArrayFile(folder / OFFSETS_FILE, np.int64) if text else None
    end = 0
    if offsets is not None:
        offsets.append(np.zeros(1, np.int64))
    for part in parts:
        arrays = part.arrays()
        ids.append(arrays[IDS_FILE])
        if offsets is not None:
            offsets.append(arrays[OFFSETS_FILE][1:] + end)
            end += len(arrays[IDS_FILE])
    for file in (ids, offsets):
        if file is not None:
            file.close()


def open_ids(folder: Path, dtype: str) -> IdArrays:
    """Ids in the files of a folder, memory-mapped.

    Raises:
        OSError, ValueError: they are missing or damaged.
    """
    names = (IDS_FILE, OFFSETS_FILE) if dtype == TextIds.dtype else (IDS_FILE,)
    return ids_in(dtype, {name: mapped(folder / name) for name in names})


def ids_in(dtype: str, arrays: Mapping[str, np.ndarray]) -> IdArrays:
    """Ids in arrays, by the names of their files; ValueError where these are no such."""
    ids = arrays[IDS_FILE]
    if dtype != TextIds.dtype:
        if ids.ndim != 1 or ids.dtype != _NUMBERS.get(dtype):
            raise ValueError(f"{IDS_FILE} holds {ids.dtype} {list(ids.shape)}, not {dtype}")
        return NumberIds(ids)
    offsets = arrays[OFFSETS_FILE]
    fit = ids.dtype == np.uint8 and offsets.dtype == np.int64 and ids.ndim == offsets.ndim == 1
    if not fit or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(ids):
        raise ValueError(f"{OFFSETS_FILE} does not belong to {IDS_FILE}")
    return TextIds(ids, offsets)


def mapped(path: Path) -> np.ndarray:
    """An array that is read from its file where it is looked at."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path.name} is cut off") from error
    # A plain array: a memmap costs microseconds with every slice.
    return array.view(np.ndarray)
