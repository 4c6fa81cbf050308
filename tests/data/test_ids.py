"""Ids: spellings that look like one another are told, and made one where that is asked for."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest

from blossomrec.errors import DataError
from tables_of_events import read_events


@pytest.fixture
def read(tmp_path):
    """Reads ids from a text file: what they became, and what was told."""

    def reading(ids, **options):
        path = tmp_path / "events.csv"
        path.write_text("user_id,item_id,timestamp\n" + "".join(f"{id},7,5\n" for id in ids))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            values = read_events(path, **options)["user_id"].to_list()
        assert all(issubclass(one.category, UserWarning) for one in told)
        return values, [str(one.message) for one in told]

    return reading


DECIMALS = "written as decimals among integers"
SPACE = "with white space around them"
MISSING = "that are words for a missing value"
PADDED = "that differ from others by a sign or leading zeros"


@pytest.mark.parametrize(
    ("ids", "what", "shown"),
    [
        (["1", "1", "1.0", "2.00"], DECIMALS, "'1.0', '2.00' (ids: 2, events: 2)"),
        (["1", "1 ", "1", "\u00a02"], SPACE, "'1 ', '\\xa02' (ids: 2, events: 2)"),
        (["a", *(f" {n}" for n in "abcd")], SPACE, "' a', ' b', ' c', ... (ids: 4, events: 4)"),
        (["anna", "nan", "None", "nan"], MISSING, "'None', 'nan' (ids: 2, events: 3)"),
        (["7", "007", "x"], PADDED, "'007' (ids: 1, events: 1)"),
    ],
)
def test_mixed_spellings_stay_and_are_told(read, ids, what, shown):
    values, told = read(ids)
    assert values == ids
    assert len(told) == 1
    assert f"column 'user_id': ids {what} are taken as ids of their own: {shown}" in told[0]


@pytest.mark.parametrize(
    "ids",
    [["anna", "ben"], ["v1.0", "1.0.0"], ["001", "002", "x"], ["a b", "c"], ["1.5", "2.5"]],
)
def test_plain_text_is_not_suspected(read, ids):
    assert read(ids) == (ids, [])


def test_quotes_around_ids_are_told(tmp_path):
    path = tmp_path / "e.tsv"
    path.write_text('user_id\titem_id\ttimestamp\n"a"\tx\t5\nb\ty\t6\n')
    with pytest.warns(UserWarning, match=r"ids in quotes .* '\"a\"' .*the option quote removes"):
        assert read_events(path)["user_id"].to_list() == ['"a"', "b"]


def test_words_among_whole_decimals_are_refused(read):
    with pytest.raises(DataError, match="row 3: 'nan' is not an id: it is missing"):
        read(["1.0", "1.0", "nan", "2"])


def test_normalizing_makes_one_id_of_several_spellings(read):
    assert read(["1", " 1", "1.0", "1.00 ", "2"], normalize_ids=True) == ([1, 1, 1, 1, 2], [])
    ids = [" anna", "anna", "1.0", "-3.0", "007.0", "1.5"]
    values, told = read(ids, normalize_ids=True)
    assert values == ["anna", "anna", "1", "-3", "007.0", "1.5"] and told == []


def test_normalizing_leaves_nothing_empty(read):
    with pytest.raises(DataError, match="row 2: '' is not an id: it is empty"):
        read(["a", "  "], normalize_ids=True)


def test_text_of_a_frame_stays_text(read):
    frame = pl.DataFrame({"user_id": ["1", "1.0 "], "item_id": [1, 2], "timestamp": [1, 2]})
    with pytest.warns(UserWarning, match="with white space"):
        assert read_events(frame)["user_id"].to_list() == ["1", "1.0 "]
    assert read_events(frame, normalize_ids=True)["user_id"].to_list() == ["1", "1"]


def test_whole_decimals_in_text_keep_every_digit(read):
    ids = [f"{2**53 + n}.0" for n in range(3)]
    values, told = read(ids)
    assert values == [2**53, 2**53 + 1, 2**53 + 2]
    assert len(told) == 1 and "ids are floats" in told[0]


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 2**24), (np.float64, 2**53)])
def test_floats_that_merge_neighbours_are_refused(dtype, limit):
    # The integer above the limit has become the limit.
    ids = np.array([1, limit - 1, limit + 1], dtype=dtype)
    assert ids[2] == limit
    frame = pl.DataFrame({"user_id": ids, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    with pytest.raises(DataError, match=r"row 3: .* is not an id: a float this large"):
        read_events(frame)
    with pytest.warns(UserWarning, match="ids are floats"):
        assert read_events(frame[:2])["user_id"].to_list() == [1, limit - 1]
