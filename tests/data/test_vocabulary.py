"""External ids and rows: both ways, through files, and ids of another type."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError

INTEGERS = pl.Series([30, -10, 20])
STRINGS = pl.Series(["12", "x", "ü"])

any_ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True).map(
        lambda ids: pl.Series(ids, dtype=pl.Int64)
    ),
    st.lists(st.integers(0, 2**64 - 1), unique=True).map(
        lambda ids: pl.Series(ids, dtype=pl.UInt64)
    ),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True).map(
        lambda ids: pl.Series(ids, dtype=pl.String)
    ),
)


@settings(max_examples=60, deadline=None)
@given(ids=any_ids)
def test_round_trip_through_rows_and_files(ids, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    Vocabulary(ids).save(folder)
    opened = Vocabulary.open(folder)
    assert (opened.size, opened.fingerprint) == (len(ids), Vocabulary(ids).fingerprint)
    rows = np.arange(len(ids))
    assert opened.ids(rows).dtype == ids.dtype
    assert opened.ids(rows).to_list() == ids.to_list()
    assert opened.rows(ids).tolist() == rows.tolist()
    assert opened.rows(ids).dtype == np.int64


@pytest.mark.parametrize(
    ("known", "asked", "rows"),
    [
        (INTEGERS, [20, 30, 99, 20], [2, 0, -1, 2]),
        (INTEGERS, ["20", "-10", "020", "x", " 30"], [2, 1, -1, -1, -1]),
        (INTEGERS, [20.0, 20.5, float("nan"), 1e300], [2, -1, -1, -1]),
        (INTEGERS, [20, "30", None, 2**64], [2, 0, -1, -1]),
        (INTEGERS, np.array([30, 20], dtype=np.uint8), [0, 2]),
        (INTEGERS, np.array(["30", "x"]), [0, -1]),
        (INTEGERS, np.array([30, "x"], dtype=object), [0, -1]),
        (INTEGERS, pl.Series([30, None], dtype=pl.Int32), [0, -1]),
        (INTEGERS, (number for number in (30, 20)), [0, 2]),
        (INTEGERS, [2**200, 30], [-1, 0]),
        (INTEGERS, [], []),
        (STRINGS, [12, 13], [0, -1]),
        (STRINGS, [12.0, 12.5], [0, -1]),
        (STRINGS, ["ü", "X", None, 12], [2, -1, -1, 0]),
        (STRINGS, pl.Series(["x", "12"], dtype=pl.Categorical), [1, 0]),
    ],
)
def test_rows_of_ids_of_any_type(known, asked, rows):
    assert Vocabulary(known).rows(asked).tolist() == rows


def test_rows_of_pandas_series():
    pandas = pytest.importorskip("pandas")
    assert Vocabulary(INTEGERS).rows(pandas.Series([20, 5])).tolist() == [2, -1]
    assert Vocabulary(STRINGS).rows(pandas.Series(["ü", "y"])).tolist() == [2, -1]


@pytest.mark.parametrize("wrong", ["12", b"12", 12, None])
def test_one_id_is_no_list(wrong):
    with pytest.raises(DataError, match="is not a list of ids"):
        Vocabulary(STRINGS).rows(wrong)


@pytest.mark.parametrize("rows", [[3], [-1], [0, 7]])
def test_rows_out_of_range(rows):
    with pytest.raises(IndexError, match="from 0 to 2"):
        Vocabulary(INTEGERS).ids(rows)


def test_fingerprint_sees_order_type_and_borders():
    series = [
        INTEGERS,
        INTEGERS.sort(),
        INTEGERS.cast(pl.String),
        INTEGERS.abs().cast(pl.UInt64),
        INTEGERS.abs(),
        pl.Series(["ab", "c"]),
        pl.Series(["a", "bc"]),
        pl.Series(["a", "b", "c"]),
    ]
    assert len({Vocabulary(ids).fingerprint for ids in series}) == len(series)


@pytest.mark.parametrize("ids", [pl.Series([1, 1]), pl.Series([1, None])])
def test_ids_must_be_distinct(ids):
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary(ids)


def test_opening_reads_no_ids_and_needs_no_polars(tmp_path):
    Vocabulary(STRINGS).save(tmp_path)
    code = (
        "import sys; from blossomrec.data.vocabulary import Vocabulary;"
        f"v = Vocabulary.open({str(tmp_path)!r}); print(v.size, v.fingerprint);"
        "sys.exit('polars' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["3", Vocabulary(STRINGS).fingerprint]


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        Vocabulary(STRINGS).save(tmp_path)
        return tmp_path

    def change(self, folder, **values):
        path = folder / "vocabulary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"is not a vocabulary: it has no vocabulary\.json"):
            Vocabulary.open(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"size": 3}', '{"format": 1}'])
    def test_damaged_description(self, folder, text):
        (folder / "vocabulary.json").write_text(text)
        with pytest.raises(DataError, match=r"vocabulary\.json is damaged"):
            Vocabulary.open(folder)

    def test_newer_format(self, folder):
        self.change(folder, format=2)
        with pytest.raises(DataError, match="format 2, written by a newer blossomrec"):
            Vocabulary.open(folder)

    @pytest.mark.parametrize("change", [{"size": 4}, {"dtype": "Int64"}, {"fingerprint": "0"}])
    def test_ids_of_another_vocabulary(self, folder, change):
        self.change(folder, **change)
        with pytest.raises(DataError, match="does not belong"):
            Vocabulary.open(folder).rows(["x"])

    def test_truncated_ids(self, folder):
        content = (folder / "ids.parquet").read_bytes()
        (folder / "ids.parquet").write_bytes(content[:50])
        with pytest.raises(DataError, match=r"ids\.parquet is damaged"):
            Vocabulary.open(folder).rows(["x"])
