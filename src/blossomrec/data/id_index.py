"""From ids to rows by hashes that lie in order, in memory or memory-mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from blossomrec.data.id_arrays import IDS_AT_ONCE, ArrayFile, IdArrays, mapped
from blossomrec.files import remove

KEYS_FILE, ROWS_FILE = "keys.npy", "rows.npy"
# With more ids the index is made of so many parts, one after another.
_WHOLE, _PARTS = 4_000_000, 64


class IdIndex:
    """Hashes of ids, uint64 [n], in order, and the row of each, int32 [n]."""

    def __init__(self, keys: np.ndarray, rows: np.ndarray):
        self._keys, self._rows = keys, rows

    @classmethod
    def of(cls, ids: IdArrays) -> IdIndex:
        """The index of ids, in memory."""
        parts = [one.hashes() for one in ids.parts()]
        keys = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        rows = np.argsort(keys, kind="stable")
        return cls(keys[rows], rows.astype(np.int32))

    @classmethod
    def open(cls, folder: Path, size: int) -> IdIndex:
        """The index that lies in a folder, memory-mapped.

        Raises:
            OSError, ValueError: it is missing or damaged.
        """
        keys, rows = mapped(folder / KEYS_FILE), mapped(folder / ROWS_FILE)
        for name, array, dtype in ((KEYS_FILE, keys, np.uint64), (ROWS_FILE, rows, np.int32)):
            if array.dtype != dtype or array.shape != (size,):
                raise ValueError(f"{name} holds {array.dtype} {list(array.shape)}, not {size} ids")
        return cls(keys, rows)

    def fingerprint(self) -> str:
        """SHA-256 of hashes and rows."""
        digest = hashlib.sha256()
        for array in (self._keys, self._rows):
            for start in range(0, len(array), IDS_AT_ONCE):
                digest.update(np.ascontiguousarray(array[start : start + IDS_AT_ONCE]).data)
        return digest.hexdigest()

    def rows(self, known: IdArrays, wanted: IdArrays) -> np.ndarray:
        """Rows of the ``wanted`` ids among the ``known`` ones, -1 for others: int64."""
        found, hashes = np.full(len(wanted), -1), wanted.hashes()
        # Neighbours in order lie on the same pages.
        order = np.argsort(hashes)
        places = np.searchsorted(self._keys, hashes[order])
        while len(order):
            left = places < len(self._keys)
            left[left] = self._keys[places[left]] == hashes[order[left]]
            order, places = order[left], places[left]
            rows = np.asarray(self._rows[places], np.int64)
            there = known.take(rows).same(wanted.take(order))
            found[order[there]] = rows[there]
            # Another id may have the same hash: its place is the next one.
            order, places = order[~there], places[~there] + 1
        return found


def write_index(ids: IdArrays, folder: Path) -> None:
    """Write the index of ids to a folder, of many of them a part at a time."""
    keys, rows = ArrayFile(folder / KEYS_FILE, np.uint64), ArrayFile(folder / ROWS_FILE, np.int32)
    for part_keys, part_rows in _parts(ids, folder / "parts"):
        order = np.argsort(part_keys, kind="stable")
        keys.append(part_keys[order])
        rows.append(part_rows[order])
    keys.close()
    rows.close()


def _parts(ids: IdArrays, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hashes and rows, those of the lowest hashes first."""
    if len(ids) <= _WHOLE:
        parts = [one.hashes() for one in ids.parts()]
        keys = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        yield keys, np.arange(len(keys), dtype=np.int32)
        return
    folder.mkdir()
    names = [str(number) for number in range(_PARTS)]
    files = {
        name: (
            ArrayFile(folder / f"{name}-{KEYS_FILE}", np.uint64),
            ArrayFile(folder / f"{name}-{ROWS_FILE}", np.int32),
        )
        for name in names
    }
    first = 0
    for one in ids.parts():
        keys = one.hashes()
        numbers = keys // np.uint64(2**64 // _PARTS)
        order = np.argsort(numbers, kind="stable")
        cuts = np.searchsorted(numbers[order], np.arange(_PARTS + 1))
        for number, name in enumerate(names):
            part = order[cuts[number] : cuts[number + 1]]
            files[name][0].append(keys[part])
            files[name][1].append(first + part)
        first += len(one)
    for pair in files.values():
        for file in pair:
            file.close()
    for name in names:
        yield (
            np.load(folder / f"{name}-{KEYS_FILE}", allow_pickle=False),
            np.load(folder / f"{name}-{ROWS_FILE}", allow_pickle=False),
        )
    remove(folder)
