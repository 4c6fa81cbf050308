"""Cutting and packing: every event once, nothing over the limits."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data.windows import boundaries, cut_windows, fill, gather_index, positions_within

some_lengths = st.lists(st.integers(1, 70), min_size=1, max_size=30)


def separated(lengths):
    """Starts of pieces with gaps between them, so that a window cannot stray unnoticed."""
    return boundaries(np.asarray(lengths) + 3)[:-1] + 1


@settings(max_examples=200, deadline=None)
@given(lengths=some_lengths, max_len=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_windows_cover_every_event_exactly_once(lengths, max_len, seed):
    lengths = np.asarray(lengths)
    starts = separated(lengths)
    rng = np.random.default_rng(seed)
    windows = cut_windows(starts, lengths, max_len, rng)
    covered = gather_index(windows.starts, windows.lengths)
    assert covered.tolist() == gather_index(starts, lengths).tolist()
    assert windows.lengths.min() >= 1 and windows.lengths.max() <= max_len
    # One window where the piece fits; else only the first and the last may be short.
    piece = np.searchsorted(starts, windows.starts, side="right") - 1
    for number, length in enumerate(lengths.tolist()):
        own = windows.lengths[piece == number].tolist()
        assert own == [length] if length <= max_len else set(own[1:-1]) <= {max_len}
    shuffled = windows.shuffled(rng)
    assert sorted(zip(shuffled.starts, shuffled.lengths, strict=True)) == list(
        zip(windows.starts, windows.lengths, strict=True)
    )


def test_first_window_is_uniform():
    pieces = 20_000
    windows = cut_windows(np.arange(pieces) * 50, np.full(pieces, 50), 10, np.random.default_rng(0))
    first = windows.lengths[windows.starts % 50 == 0]
    counts = np.bincount(first, minlength=11)[1:]
    assert counts.sum() == pieces and counts.min() > 0.9 * pieces / 10


@settings(max_examples=200, deadline=None)
@given(lengths=some_lengths, budget=st.integers(1, 100))
def test_fill_is_greedy_and_keeps_the_budget(lengths, budget):
    cuts = fill(np.asarray(lengths), budget).tolist()
    assert cuts[0] == 0 and cuts[-1] == len(lengths)
    for start, stop in itertools.pairwise(cuts):
        assert stop - start == 1 or sum(lengths[start:stop]) <= budget
        assert stop == len(lengths) or sum(lengths[start : stop + 1]) > budget


def test_fill_of_nothing():
    assert fill(np.asarray([], dtype=np.int64), 5).tolist() == [0]


def test_ragged_indices():
    lengths = np.asarray([2, 0, 3])
    assert boundaries(lengths).tolist() == [0, 2, 2, 5]
    assert positions_within(lengths).tolist() == [0, 1, 0, 1, 2]
    assert gather_index(np.asarray([10, 5, 20]), lengths).tolist() == [10, 11, 20, 21, 22]
