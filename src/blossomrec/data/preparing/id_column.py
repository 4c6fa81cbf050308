"""Ids of users or items of a table that comes in batches, more than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from blossomrec.data.id_arrays import IdArrays, ids_of, open_ids, write_ids
from blossomrec.data.id_index import IdIndex, write_index
from blossomrec.data.preparing.columns import BatchColumn
from blossomrec.data.preparing.sorted_runs import SortedRuns
from blossomrec.data.reading.columns import Column, plain_text, refuse_missing
from blossomrec.data.reading.ids import (
    Spellings,
    TextFacts,
    as_integers,
    normalized,
    read_ids,
    refuse_mixed_signs,
    warn_of_floats,
)


class IdColumn(BatchColumn):
    """Ids of users or items; each stands for its place among all of them, sorted.

    Memory is that of a batch and of a range of ids; the ids are on disk.

    Args:
        normalize: as of :class:`ReadOptions`.
        folder: a new one, that they are kept in.

    Attributes, once it is closed:
        ids: sorted, memory-mapped.
        counts: events of each, int64.
    """

    def __init__(self, normalize: bool, folder: Path):
        folder.mkdir()
        self._normalize, self._folder = normalize, folder
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
        merged = numbers.merged(self._folder / "sorted-numbers")
        self._again = np.concatenate(
            [
                _unsorted(as_integers(frame["value"], facts.number_type), numbers.places(number))
                for number, frame in enumerate(ranges.frames())
            ]
        )
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
