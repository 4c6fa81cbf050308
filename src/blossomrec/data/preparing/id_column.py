"""Ids of users or items of a table that comes in batches, more than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from blossomrec.data.id_arrays import IdArrays, ids_of, open_ids, write_ids
from blossomrec.data.id_index import IdIndex, write_index
from blossomrec.data.preparing.columns import BatchColumn
from blossomrec.data.preparing.sorted_runs import SortedRuns
from blossomrec.data.reading.columns import Column, Refused, plain_text, refuse_missing
from blossomrec.data.reading.ids import (
    Spellings,
    TextFacts,
    as_integers,
    normalized,
    read_ids,
    refuse_mixed_signs,
    warn_of_floats,
)


class KnownIds(NamedTuple):
    """The type of ids that are there already: text stands for an integer if it is written as one.

    Attributes:
        dtype: of a vocabulary.
        what: an id is of, in words.
    """

    dtype: str
    what: str

    def cast(self, values: pl.Series) -> pl.Series:
        """Ids in this type; null where one cannot be."""
        return values.cast(getattr(pl, self.dtype), strict=False)

    def differ(self, values: pl.Series, ids: pl.Series) -> pl.Series:
        """Where ids in this type are not what values say."""
        return ids.is_null() | (ids.cast(pl.String) != values.cast(pl.String))

    @property
    def why(self) -> str:
        """What is wrong with a value that differs."""
        kind = "text" if self.dtype == "String" else "integers"
        return f"is no id of {self.what}: those of the log are {kind} ({self.dtype})"


class IdColumn(BatchColumn):
    """Ids of users or items; each stands for its place among all of them, sorted.

    Memory is that of a batch and of a range of ids; the ids are on disk.

    Args:
        normalize: as of :class:`ReadOptions`.
        folder: a new one, that they are kept in.
        known: the type that they are brought to; None for that which they have.

    Attributes, once it is closed:
        ids: sorted, memory-mapped.
        counts: events of each, int64.
    """

    def __init__(self, normalize: bool, folder: Path, known: KnownIds | None = None):
        folder.mkdir()
        self._normalize, self._folder, self._wanted = normalize, folder, known
        self._runs = SortedRuns(folder / "runs")
        self._first: Column | None = None
        self._last: Column | None = None
        self._large = False
        self._negative: Column | None = None
        self._again: np.ndarray | None = None

    def add(self, column: Column) -> pl.Series:
        column = plain_text(column)
        refuse_missing(column, "id")
        if self._normalize:
            column = normalized(column)
            refuse_missing(column, "id")
        values, first = column.values, 0 if column.rows is None else int(column.rows[0])
        batch = pl.DataFrame({"value": values}).with_row_index("row")
        met = batch.group_by("value", maintain_order=True).agg(
            pl.col("row").first().cast(pl.Int64) + first, pl.len().cast(pl.Int64).alias("count")
        )
        read = met["value"]
        if values.dtype != pl.String:
            distinct = replace(
                column, values=read, rows=met["row"].to_numpy(), counts=met["count"].to_numpy()
            )
            read = read_ids(distinct, warn=self._first is None)
            self._note_signs(distinct.with_values(read))
        if self._first is None:
            self._first = column.with_values(values.head(1))
        self._last = column
        order = read.arg_sort()
        places = met.select("value").gather(order).with_row_index("code")
        codes = batch.select("value").join(places, on="value", how="left", maintain_order="left")
        self._runs.add(met.with_columns(value=read).select(pl.all().gather(order)))
        return codes["code"].cast(pl.Int32)

    def close(self) -> None:
        assert self._last is not None
        if self._large and self._negative is not None:
            refuse_mixed_signs(self._negative)
        if self._large:
            self._runs = self._converted(self._runs, pl.UInt64, "large")
        ranges = self._runs.merged(self._folder / "ranges")
        if self._last.values.dtype == pl.String:
            ranges = self._read_texts(ranges)
        if self._wanted is not None:
            ranges = self._as_wanted(ranges, self._wanted)
        self.counts = ranges.counts()
        dtype = str(next(ranges.frames())["value"].dtype)
        write_ids(self._folder, dtype, (ids_of(each["value"]) for each in ranges.frames()))
        self.ids: IdArrays = open_ids(self._folder, dtype)

    def decoded(self, numbers: pl.Series, batch: int) -> np.ndarray:
        places = self._runs.places(batch)
        if self._again is not None:
            places = self._again[places]
        return places[numbers.to_numpy()]

    def _note_signs(self, read: Column) -> None:
        """Remember whether some ids need 64 bits without a sign, and others have one."""
        self._large |= read.values.dtype == pl.UInt64
        negative = (read.values < 0).arg_true()
        if self._negative is None and len(negative):
            assert read.rows is not None and read.counts is not None
            rows = negative.to_numpy()
            self._negative = replace(
                read,
                values=read.values.gather(negative),
                rows=np.asarray(read.rows)[rows],
                counts=read.counts[rows],
                whole=False,
            )

    def _converted(self, runs: SortedRuns, dtype: type[pl.DataType], name: str) -> SortedRuns:
        """Runs of whole numbers, none of them negative, in another type."""
        found = SortedRuns(self._folder / name)
        for frame in runs.frames():
            found.add(frame.with_columns(pl.col("value").cast(dtype)))
        return found

    def _read_texts(self, ranges: SortedRuns) -> SortedRuns:
        """What texts are read as, once all are known: as themselves, or as integers."""
        assert self._first is not None and self._last is not None
        facts = TextFacts(self._last.textual)
        for frame in ranges.frames():
            facts.add(self._of_range(frame))
        if not facts.are_numbers:
            facts.refuse_missing_words()
            self._warn_of_spellings(ranges, facts)
            return ranges
        numbers = SortedRuns(self._folder / "numbers")
        for frame in ranges.frames():
            read = as_integers(frame["value"], facts.number_type)
            numbers.add(frame.with_columns(value=read).sort("value"))
        if facts.are_decimals:
            text = self._first.values[0]
            warn_of_floats(self._last, text, text.partition(".")[0])
        return self._in_place_of(
            ranges, numbers, lambda values: as_integers(values, facts.number_type)
        )

    def _as_wanted(self, ranges: SortedRuns, known: KnownIds) -> SortedRuns:
        """The ids in a type that is given."""
        if str(next(ranges.frames())["value"].dtype) == known.dtype:
            return ranges
        found, refused = SortedRuns(self._folder / "wanted"), Refused()
        for frame in ranges.frames():
            ids = known.cast(frame["value"])
            refused.add(self._of_range(frame), known.differ(frame["value"], ids))
            found.add(frame.with_columns(value=ids).sort("value"))
        refused.refuse(known.why)
        return self._in_place_of(ranges, found, known.cast)

    def _in_place_of(
        self, ranges: SortedRuns, others: SortedRuns, read: Callable[[pl.Series], pl.Series]
    ) -> SortedRuns:
        """Runs that have what values of ranges are read as, sorted, merged in place of these."""
        merged = others.merged(others.folder.with_name(f"sorted-{others.folder.name}"))
        again = np.concatenate(
            [
                _unsorted(read(frame["value"]), others.places(number))
                for number, frame in enumerate(ranges.frames())
            ]
        )
        self._again = again if self._again is None else again[self._again]
        return merged

    def _of_range(self, frame: pl.DataFrame) -> Column:
        assert self._last is not None
        rows, counts = frame["row"].to_numpy(), frame["count"].to_numpy()
        return replace(self._last, values=frame["value"], rows=rows, counts=counts, whole=True)

    def _warn_of_spellings(self, ranges: SortedRuns, facts: TextFacts) -> None:
        spellings = Spellings(any_integer=facts.any_integer, is_known=self._known(ranges))
        for frame in ranges.frames():
            spellings.add(self._of_range(frame))
        spellings.warn()

    def _known(self, ranges: SortedRuns) -> Callable[[pl.Series], pl.Series]:
        """A function that tells of texts whether they are among the ids."""
        found = list[tuple[IdArrays, IdIndex]]()

        def is_known(texts: pl.Series) -> pl.Series:
            if not found:
                # Only where there are texts that may be another spelling.
                place = self._folder / "texts"
                place.mkdir()
                write_ids(place, "String", (ids_of(each["value"]) for each in ranges.frames()))
                ids = open_ids(place, "String")
                write_index(ids, place)
                found.append((ids, IdIndex.open(place, len(ids))))
            ids, index = found[0]
            return pl.Series(index.rows(ids, ids_of(texts)) >= 0)

        return is_known


def _unsorted(values: pl.Series, places: np.ndarray) -> np.ndarray:
    """Places of the sorted values, in the order of the values."""
    found = np.empty(len(places), np.int32)
    found[values.arg_sort().to_numpy()] = places
    return found
