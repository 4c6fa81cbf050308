"""External ids on one side, row numbers on the other."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

_FORMAT = 1
_DTYPES = ("Int64", "UInt64", "String")


class Vocabulary:
    """Ids of users or items and their rows 0..size-1; integers stay integers, strings strings.

    ``size`` and ``fingerprint`` (of all ids, their order and type) are known without reading the
    ids; those are read, with polars, when first asked for.
    """

    def __init__(self, ids: pl.Series):
        """ids: distinct ids without nulls, of type Int64, UInt64 or String, in order of row."""
        if str(ids.dtype) not in _DTYPES:
            raise TypeError(f"ids are {ids.dtype}: one of {', '.join(_DTYPES)} is needed")
        if ids.null_count() or ids.n_unique() != len(ids):
            raise ValueError("ids must be distinct and not null")
        self._ids: pl.Series | None = ids.alias("id")
        self._folder: Path | None = None
        self.size = len(ids)
        self.dtype = str(ids.dtype)
        self.fingerprint = _fingerprint(ids)

    def rows(self, ids: Any) -> np.ndarray:
        """Rows of ``ids``, -1 for those unknown: int64 [len(ids)].

        ids: a list, array or series. Ids of another type are understood where nothing is lost:
        ``"12"`` or ``12.0`` for the integer 12, ``12`` for the string ``"12"``.
        """
        import polars as pl

        known = self._load()
        wanted = _as_type(_to_series(ids), known.dtype)
        rows = wanted.replace_strict(
            known, pl.Series(np.arange(self.size)), default=-1, return_dtype=pl.Int64
        )
        return rows.fill_null(-1).to_numpy().astype(np.int64, copy=True)

    def ids(self, rows: Any) -> pl.Series:
        """Ids of ``rows`` (integers 0..size-1), in the vocabulary's own type."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.size):
            raise IndexError(f"rows must be from 0 to {self.size - 1}")
        return self._load().gather(rows)

    def save(self, folder: str | Path) -> None:
        """Write ``ids.parquet`` and ``vocabulary.json``; the latter last, once all is there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ids = self._load()
        description = {
            "format": _FORMAT,
            "size": self.size,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
        }
        partial = folder / ".ids.parquet.partial"
        ids.to_frame().write_parquet(partial)
        os.replace(partial, folder / "ids.parquet")
        partial = folder / ".vocabulary.json.partial"
        partial.write_text(json.dumps(description, indent=2) + "\n")
        os.replace(partial, folder / "vocabulary.json")

    @classmethod
    def open(cls, folder: str | Path) -> Vocabulary:
        """The vocabulary saved in ``folder``. Raises DataError where it is missing or damaged."""
        path = Path(folder) / "vocabulary.json"
        description = read_description(path, _FORMAT, "a vocabulary")
        vocabulary = cls.__new__(cls)
        try:
            vocabulary.size = int(description["size"])
            vocabulary.dtype = str(description["dtype"])
            vocabulary.fingerprint = str(description["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error!r}") from error
        vocabulary._ids = None
        vocabulary._folder = Path(folder)
        return vocabulary

    def _load(self) -> pl.Series:
        if self._ids is None:
            assert self._folder is not None
            ids = _read_ids(self._folder / "ids.parquet")
            if (
                str(ids.dtype) != self.dtype
                or len(ids) != self.size
                or _fingerprint(ids) != self.fingerprint
            ):
                raise DataError(
                    f"{self._folder} is damaged: ids.parquet does not belong to vocabulary.json"
                )
            self._ids = ids
        return self._ids


def read_description(path: Path, newest: int, what: str) -> dict[str, Any]:
    """The JSON object that describes a saved folder, refused when of a format after ``newest``."""
    try:
        description = json.loads(path.read_text())
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


def _read_ids(path: Path) -> pl.Series:
    import polars as pl

    try:
        return pl.read_parquet(path)["id"]
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _fingerprint(ids: pl.Series) -> str:
    digest = hashlib.sha256(f"{ids.dtype} {len(ids)}\n".encode())
    if str(ids.dtype) == "String":
        # The lengths make ["ab", "c"] and ["a", "bc"] differ.
        digest.update(ids.str.len_bytes().to_numpy().astype("<u4").tobytes())
        digest.update("".join(ids).encode())
    else:
        array = ids.to_numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _to_series(ids: Any) -> pl.Series:
    """Ids as a series of one type; ids of several types become strings."""
    import polars as pl

    if isinstance(ids, pl.Series):
        return ids
    if hasattr(ids, "to_numpy"):
        ids = ids.to_numpy()
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iufU":
        return pl.Series(ids)
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
        raise DataError(f"{ids!r} is not a list of ids")
    ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    kinds = {type(value) for value in ids if value is not None}
    of_one_type = len(kinds) <= 1 and kinds <= {int, float, str}
    if kinds == {int}:
        of_one_type = all(value is None or -(2**63) <= value < 2**64 for value in ids)
    if not of_one_type:
        ids = [None if value is None else str(value) for value in ids]
    return pl.Series(ids, dtype=None if kinds else pl.String)


def _as_type(ids: pl.Series, dtype: pl.DataType) -> pl.Series:
    """``ids`` cast to ``dtype``; null where that would change an id."""
    import polars as pl

    if ids.dtype == dtype:
        return ids
    if ids.dtype in (pl.Categorical, pl.Enum):
        ids = ids.cast(pl.String)
    if ids.dtype.is_float():
        whole = ids.cast(pl.Int64, strict=False)
        ids = pl.select(pl.when(whole.cast(ids.dtype) == ids).then(whole)).to_series()
    cast = ids.cast(dtype, strict=False)
    back = cast.cast(ids.dtype, strict=False)
    return pl.select(pl.when(back == ids).then(cast)).to_series()
