"""Features of items or users: what a table says of each row of a vocabulary, memory-mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from blossomrec.data.vocabulary import natural, read_description, text
from blossomrec.errors import DataError
from blossomrec.files import write_json

_FORMAT = 1
TABLE_FILE = "features.json"


@dataclass(frozen=True)
class Titles:
    """A text for people, of each row; empty where there is none.

    Attributes:
        content: uint8, all texts in UTF-8, one after another.
        offsets: int64 [R+1], where each begins and the last one ends.
    """

    kind: ClassVar[str] = "title"
    content: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, row: int) -> str:
        return bytes(self.content[self.offsets[row] : self.offsets[row + 1]]).decode()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def all(self) -> list[str]:
        """The texts of all rows, read at once."""
        content = bytes(self.content)
        return [content[start:end].decode() for start, end in pairwise(self.offsets.tolist())]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"content": self.content, "offsets": self.offsets}

    @classmethod
    def of(cls, texts: list[str]) -> Titles:
        encoded = [one.encode() for one in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)


@dataclass(frozen=True)
class Categories:
    """One or several of a set of names, of each row; number 0 stands for unknown or missing.

    Attributes:
        names: of the numbers 1, 2, ...
        values: int32, numbers of all rows, one after another; every row has at least one.
        offsets: int64 [R+1], where each row's begin and the last one's end.
    """

    kind: ClassVar[str] = "category"
    names: Titles
    values: np.ndarray
    offsets: np.ndarray

    @property
    def size(self) -> int:
        """Numbers in use, unknown included."""
        return len(self.names) + 1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> list[str]:
        """Names of a row's categories."""
        numbers = self.values[self.offsets[row] : self.offsets[row + 1]].tolist()
        return [self.names[number - 1] for number in numbers if number]

    def arrays(self) -> dict[str, np.ndarray]:
        names = {f"names-{name}": array for name, array in self.names.arrays().items()}
        return {"values": self.values, "offsets": self.offsets, **names}


@dataclass(frozen=True)
class Numbers:
    """A number of each row, float32 [R], NaN where it is missing."""

    kind: ClassVar[str] = "number"
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"values": self.values}


@dataclass(frozen=True)
class Vectors:
    """A vector of each row, float32 [R, d], NaN where it is missing."""

    kind: ClassVar[str] = "vector"
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"values": self.values}


Feature = Titles | Categories | Numbers | Vectors
_KINDS: dict[str, type[Feature]] = {
    kind.kind: kind for kind in (Titles, Categories, Numbers, Vectors)
}
_DTYPES = {"content": "uint8", "offsets": "int64", "names-content": "uint8"}


class FeatureTable(Mapping[str, Feature]):
    """Features by the name of their column, each with a value for every row of a vocabulary.

    Example:
        >>> table = FeatureTable({"price": Numbers(np.array([1.5, 2.0], np.float32))}, num_rows=2)
        >>> table["price"].values[1]
        np.float32(2.0)
    """

    def __init__(self, features: Mapping[str, Feature], num_rows: int):
        self._features, self.num_rows = dict(features), num_rows
        for name, feature in self._features.items():
            if len(feature) != num_rows:
                raise ValueError(f"{name} has {len(feature)} rows: {num_rows} are needed")

    def __getitem__(self, name: str) -> Feature:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    @property
    def titles(self) -> Titles | None:
        """The first column of titles, None without any."""
        found = (one for one in self.values() if isinstance(one, Titles))
        return next(found, None)

    def summary(self) -> list[dict[str, Any]]:
        """Of each column its name, kind, size and the share of rows that it is known of."""
        return [
            {"name": name, "kind": one.kind, "size": _size(one), "known": _known(one)}
            for name, one in self.items()
        ]

    @property
    def digest(self) -> str:
        """SHA-256 over all that the table holds."""
        digest = hashlib.sha256(f"{self.num_rows}\n".encode())
        for name, feature in self.items():
            digest.update(f"{name}\n{feature.kind}\n".encode())
            for part, array in feature.arrays().items():
                little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                digest.update(f"{part} {little.dtype.str} {little.shape}\n".encode())
                digest.update(little.tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the arrays and, when all are there, ``features.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, feature in enumerate(self.values()):
            for part, array in feature.arrays().items():
                np.save(folder / f"feature-{number}-{part}.npy", array)
        columns = [{"name": name, "kind": one.kind} for name, one in self.items()]
        description = {"format": _FORMAT, "rows": self.num_rows, "columns": columns}
        write_json(folder / TABLE_FILE, description)

    @classmethod
    def open(cls, folder: str | Path) -> FeatureTable:
        """The table saved in ``folder``, mapped into memory.

        Raises:
            DataError: it is missing or damaged; the message names the file.
        """
        folder = Path(folder)
        path = folder / TABLE_FILE
        description = read_description(path, _FORMAT, "a table of features")
        rows, columns = natural(description, "rows", path), description.get("columns")
        if not isinstance(columns, list) or not all(isinstance(one, dict) for one in columns):
            raise DataError(f"{path} is damaged: columns is no list of columns")
        features = {}
        for number, column in enumerate(columns):
            kind = text(column, "kind", path)
            if kind not in _KINDS:
                raise DataError(f"{path} is damaged: {kind!r} is no kind of feature")
            features[text(column, "name", path)] = _open(folder, number, kind, rows)
        return cls(features, rows)


def _open(folder: Path, number: int, kind: str, rows: int) -> Feature:
    def array(part: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
        path = folder / f"feature-{number}-{part}.npy"
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error
        fits = len(found.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if str(found.dtype) != dtype or not fits:
            raise DataError(f"{path} is damaged: it holds {found.dtype} {list(found.shape)}")
        return found

    def lists(values: str, offsets: str, dtype: str, count: int | None) -> list[np.ndarray]:
        ends = array(offsets, "int64", (None if count is None else count + 1,))
        content = array(values, dtype, (None,))
        if not len(ends) or ends[0] != 0 or ends[-1] != len(content) or (np.diff(ends) < 0).any():
            raise DataError(f"{folder / f'feature-{number}-{offsets}.npy'} is damaged")
        return [content, ends]

    if kind == Numbers.kind:
        return Numbers(array("values", "float32", (rows,)))
    if kind == Vectors.kind:
        return Vectors(array("values", "float32", (rows, None)))
    if kind == Titles.kind:
        return Titles(*lists("content", "offsets", "uint8", rows))
    names = Titles(*lists("names-content", "names-offsets", "uint8", None))
    values, offsets = lists("values", "offsets", "int32", rows)
    wrong = len(values) and not 0 <= int(values.min()) <= int(values.max()) <= len(names)
    if wrong or (np.diff(offsets) < 1).any():
        raise DataError(f"{folder / f'feature-{number}-values.npy'} is damaged")
    return Categories(names, values, offsets)


def _size(feature: Feature) -> int:
    if isinstance(feature, Categories):
        return len(feature.names)
    return feature.values.shape[1] if isinstance(feature, Vectors) else 1


def _known(feature: Feature) -> float:
    """Share of the rows that have a value."""
    rows = max(len(feature), 1)
    if isinstance(feature, Categories):
        return float(np.add.reduceat(feature.values > 0, feature.offsets[:-1]).astype(bool).mean())
    if isinstance(feature, Titles):
        return float((np.diff(feature.offsets) > 0).sum()) / rows
    missing = np.isnan(feature.values)
    return 1 - float((missing if missing.ndim == 1 else missing.any(1)).sum()) / rows
