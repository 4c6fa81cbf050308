"""Distinct values of a column, more than memory holds: sorted runs on disk, merged by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from blossomrec.data.windows import boundaries

# Values that are in memory at a time when runs are merged.
VALUES_AT_ONCE = 2_000_000
# Of such a range, about how many values stand for it when it is chosen.
_SAMPLES = 64
# Of a run, what is read at least where a range of it is asked for.
_READ_AT_ONCE = 65_536
_PLACE = np.dtype(np.int32)


class SortedRuns:
    """Runs of distinct values on disk; the same value may be in several.

    Each is a frame with the columns value, row (where it stands first) and count (of rows that have
    it), rising by value.

    Args:
        folder: a new one, that they are kept in.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self._lengths = list[int]()

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, run: pl.DataFrame) -> None:
        """Keep one more run."""
        run.select("value", "row", "count").write_ipc(
            self._file(len(self._lengths)), record_batch_size=_READ_AT_ONCE
        )
        self._lengths.append(run.height)

    def frames(self) -> Iterator[pl.DataFrame]:
        """The runs, one after another."""
        for number, length in enumerate(self._lengths):
            yield self._part(number, 0, length)

    def merged(self, folder: Path) -> SortedRuns:
        """Runs of all values, each in one of them, rising also from run to run.

        Of each value of these runs :meth:`places` then says where it is among those. One range of
        values is in memory at a time.

        Args:
            folder: a new one, for these runs.
        """
        ranges = SortedRuns(folder)
        cuts, starts, first = self._cuts(), boundaries(np.array(self._lengths)), 0
        # One file for all runs: of a large table there are more than a process may have open.
        with self._places.open("wb") as file:
            for number in range(len(cuts[0]) - 1):
                slices = [
                    self._part(run, cut[number], cut[number + 1] - cut[number])
                    for run, cut in enumerate(cuts)
                ]
                values = pl.concat([each.select("value") for each in slices])
                together = (
                    pl.concat(slices)
                    .group_by("value")
                    .agg(pl.col("row").min(), pl.col("count").sum())
                    .sort("value")
                )
                numbers = together.select("value").with_row_index("place", offset=first)
                found = values.join(numbers, on="value", how="left", maintain_order="left")
                places, begin = found["place"].to_numpy().astype(_PLACE), 0
                for start, cut, each in zip(starts[:-1].tolist(), cuts, slices, strict=True):
                    file.seek((start + cut[number]) * _PLACE.itemsize)
                    file.write(places[begin : begin + each.height].data)
                    begin += each.height
                ranges.add(together)
                first += together.height
        return ranges

    def places(self, number: int) -> np.ndarray:
        """Of the values of a run, where each is among the merged ones: int32."""
        start, length = sum(self._lengths[:number]), self._lengths[number]
        return np.fromfile(self._places, _PLACE, length, offset=start * _PLACE.itemsize)

    def counts(self) -> np.ndarray:
        """How many rows have each value, run after run: int64."""
        parts = [frame["count"].to_numpy().astype(np.int64) for frame in self.frames()]
        return np.concatenate(parts)

    def _cuts(self) -> list[list[int]]:
        """Of each run, where ranges of about ``VALUES_AT_ONCE`` values of all begin and end."""
        if sum(self._lengths) <= VALUES_AT_ONCE:
            return [[0, length] for length in self._lengths]
        step = max(1, VALUES_AT_ONCE // _SAMPLES)
        # From a random one on: runs may be shorter than a step, and their first values are low.
        draws = np.random.default_rng(0)
        samples = pl.concat(
            [each["value"].gather_every(step, int(draws.integers(step))) for each in self.frames()]
        ).sort()
        borders = samples.gather_every(_SAMPLES)[1:].unique(maintain_order=True)
        return [
            [0, *each["value"].search_sorted(borders).to_list(), each.height]
            for each in self.frames()
        ]

    def _part(self, number: int, start: int, length: int) -> pl.DataFrame:
        return pl.scan_ipc(self._file(number), glob=False).slice(start, length).collect()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.arrow"

    @property
    def _places(self) -> Path:
        return self.folder / "places"
