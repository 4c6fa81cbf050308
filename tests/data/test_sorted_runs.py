"""Sorted runs on disk, merged by ranges of values."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from blossomrec.data.preparing import sorted_runs
from blossomrec.data.preparing.sorted_runs import SortedRuns


def runs_of(parts: list[np.ndarray], folder: Path) -> SortedRuns:
    runs = SortedRuns(folder)
    for values in parts:
        ones = np.ones(len(values), np.int64)
        runs.add(pl.DataFrame({"value": values, "row": ones, "count": ones}))
    return runs


def check_merged(parts: list[np.ndarray], folder: Path) -> SortedRuns:
    """The merged runs of rising values, each once, with places that lead back to them."""
    runs = runs_of(parts, folder / "runs")
    merged = runs.merged(folder / "merged")
    values = np.concatenate([frame["value"].to_numpy() for frame in merged.frames()])
    expected, counts = np.unique(np.concatenate(parts), return_counts=True)
    assert values.tolist() == expected.tolist()
    assert merged.counts().tolist() == counts.tolist()
    for number, part in enumerate(parts):
        assert values[runs.places(number)].tolist() == part.tolist()
    return merged


@pytest.mark.parametrize("length", [3, 10, 50, 700])
def test_ranges_of_short_runs_are_as_small_as_those_of_long_ones(tmp_path, monkeypatch, length):
    monkeypatch.setattr(sorted_runs, "VALUES_AT_ONCE", 1_000)
    rng = np.random.default_rng(length)
    parts = [np.unique(rng.integers(0, 10**9, length)) for _ in range(7_000 // length)]
    merged = check_merged(parts, tmp_path)
    assert max(frame.height for frame in merged.frames()) < 2_000


def test_more_runs_than_a_process_may_have_files(tmp_path):
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, high))
    try:
        check_merged([np.arange(start, start + 5) for start in range(100)], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))


def test_runs_without_values(tmp_path):
    nothing = np.empty(0, np.int64)
    (tmp_path / "some").mkdir()
    check_merged([nothing, np.array([1, 3]), nothing], tmp_path / "some")
    assert not check_merged([nothing], tmp_path).counts().tolist()
