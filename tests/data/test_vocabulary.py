"""External ids and rows: both ways, through files, and ids of another type."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data import id_arrays, id_index, vocabulary
from blossomrec.data.vocabulary import Vocabulary, as_ids
from blossomrec.errors import DataError
from tables_of_ids import write_table

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
        (INTEGERS, ["-0", "+20", "2_0", "٢٠", "9" * 30], [-1, -1, -1, -1, -1]),
        (INTEGERS, [20, "30", 2**64], [2, 0, -1]),
        (INTEGERS, np.array([30, 20], dtype=np.uint8), [0, 2]),
        (INTEGERS, np.array(["30", "x"]), [0, -1]),
        (INTEGERS, np.array([30, "x"], dtype=object), [0, -1]),
        (INTEGERS, [np.int32(30), np.str_("20"), np.uint64(2**64 - 1)], [0, 2, -1]),
        (INTEGERS, pl.Series([30, 31], dtype=pl.Int32), [0, -1]),
        (INTEGERS, torch.tensor([30, 20]), [0, 2]),
        (INTEGERS, (number for number in (30, 20)), [0, 2]),
        (INTEGERS, [2**200, 30], [-1, 0]),
        (INTEGERS, [], []),
        (STRINGS, [12, 13], [0, -1]),
        (STRINGS, ["ü", "X", "\ud800", 12], [2, -1, -1, 0]),
        (STRINGS, pl.Series(["x", "12"], dtype=pl.Categorical), [1, 0]),
    ],
)
def test_rows_of_ids_of_any_type(known, asked, rows):
    assert Vocabulary(known).rows(asked).tolist() == rows


def test_rows_of_pandas_series():
    pandas = pytest.importorskip("pandas")
    assert Vocabulary(INTEGERS).rows(pandas.Series([20, 5])).tolist() == [2, -1]
    assert Vocabulary(STRINGS).rows(pandas.Series(["ü", "y"])).tolist() == [2, -1]


@pytest.mark.parametrize(
    "wrong", ["12", "", b"12", bytearray(b"12"), 12, None, {"12": 1}, pl.DataFrame({"id": [12]})]
)
def test_one_id_is_no_list(wrong):
    with pytest.raises(DataError, match="is not a list of ids: give a list of ids"):
        Vocabulary(STRINGS).rows(wrong)


@pytest.mark.parametrize(
    "given",
    [
        [12.0],
        [float("nan")],
        [None],
        [True],
        [np.float32(12)],
        [np.bool_(True)],
        [b"12"],
        [[12]],
        [dt.date(2024, 5, 1)],
        np.array([12.0]),
        np.array([12, None], dtype=object),
        pl.Series([12.0]),
        pl.Series([12, None]),
        pl.Series([True]),
    ],
)
def test_what_is_no_id_is_refused_with_its_place(given):
    for before in ([], ["x", 12]):
        ids = [*before, *given]
        wrong = len(ids) - 1
        with pytest.raises(DataError, match=rf"^user\[{wrong}\] is .*: an id is a whole number or"):
            as_ids(ids, "user")
    with pytest.raises(DataError, match=r"^id\[\d\] is .*: an id is a whole number or text"):
        Vocabulary(INTEGERS).rows(given)


def test_ids_become_plain_numbers_and_strings():
    given = [np.int64(5), np.str_("x"), 7, "y", 2**70]
    ids = as_ids(given)
    assert ids == [5, "x", 7, "y", 2**70] and {type(one) for one in ids} == {int, str}
    assert as_ids(pl.Series(["b", "a"], dtype=pl.Categorical)) == ["b", "a"]
    assert as_ids(iter([1, 2])) == as_ids((1, 2)) == as_ids(range(1, 3)) == [1, 2]
    assert sorted(as_ids({3, 4})) == [3, 4]
    assert as_ids([]) == as_ids(np.array([])) == []


def test_an_order_is_not_taken_from_what_has_none():
    for none in ({3, 4}, frozenset({3, 4})):
        with pytest.raises(DataError, match="has no order: give a list of items, oldest first"):
            as_ids(none, "item", ordered=True)
    assert as_ids([4, 3], "item", ordered=True) == [4, 3]


@pytest.mark.parametrize("shape", [(), (1, 2)])
def test_ids_have_one_dimension(shape):
    with pytest.raises(DataError, match=rf"have {len(shape)} dimensions: a list is needed"):
        as_ids(np.ones(shape, dtype=int))


def test_long_values_are_not_told_whole():
    with pytest.raises(DataError) as error:
        as_ids("x" * 1_000_000)
    assert len(str(error.value)) < 300


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


def test_ids_are_read_after_their_folder_is_gone(tmp_path):
    Vocabulary(STRINGS).save(tmp_path / "old")
    opened = Vocabulary.open(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    opened.save(tmp_path / "copy")
    assert opened.ids([2, 0]).to_list() == ["ü", "12"]
    assert Vocabulary.open(tmp_path / "copy").rows(["x"]).tolist() == [1]


def test_pickles_take_the_ids_along(tmp_path):
    Vocabulary(STRINGS).save(tmp_path / "v")
    opened = Vocabulary.open(tmp_path / "v")
    shutil.rmtree(tmp_path / "v")
    again = pickle.loads(pickle.dumps(opened))
    assert (again.size, again.fingerprint) == (opened.size, opened.fingerprint)
    assert again.ids(range(3)).to_list() == STRINGS.to_list()
    assert copy.deepcopy(opened) is copy.copy(opened) is opened


def test_ids_of_a_folder_with_brackets(tmp_path):
    Vocabulary(STRINGS).save(tmp_path / "v[1]*?")
    assert Vocabulary.open(tmp_path / "v[1]*?").rows(["x"]).tolist() == [1]


class TestArrays:
    """Ids given as an array stay one; they are the same ids as those of a series."""

    IDS = np.array([30, -10, 20])

    def test_they_are_the_ids_of_a_series(self, tmp_path):
        Vocabulary(self.IDS).save(tmp_path)
        assert (tmp_path / "ids.npy").exists() and not (tmp_path / "ids.parquet").exists()
        opened, series = Vocabulary.open(tmp_path), Vocabulary(INTEGERS)
        assert (opened.fingerprint, opened.size) == (series.fingerprint, series.size)
        assert opened.read().to_list() == opened.listed().tolist() == INTEGERS.to_list()
        assert opened.rows(["20", 30, 5]).tolist() == [2, 0, -1]
        assert opened.begins_with(2, Vocabulary(self.IDS[:2]).fingerprint)
        assert pickle.loads(pickle.dumps(opened)).listed().tolist() == INTEGERS.to_list()

    def test_saved_again_they_are_an_array(self, tmp_path):
        Vocabulary(self.IDS).save(tmp_path / "one")
        Vocabulary.open(tmp_path / "one").save(tmp_path / "two")
        assert Vocabulary.open(tmp_path / "two").rows([20]).tolist() == [2]

    def test_what_is_no_list_of_ids_is_refused(self):
        with pytest.raises(TypeError, match="int32"):
            Vocabulary(np.array([1, 2], np.int32))
        with pytest.raises(ValueError, match="distinct"):
            Vocabulary(np.array([1, 1]))

    def test_damage_is_found(self, tmp_path):
        Vocabulary(self.IDS).save(tmp_path)
        np.save(tmp_path / "ids.npy", self.IDS[::-1])
        for use in (Vocabulary.read, lambda one: one.rows([20]), lambda one: one.ids([0])):
            with pytest.raises(DataError, match=r"ids\.npy does not belong to vocabulary\.json"):
                use(Vocabulary.open(tmp_path))
        (tmp_path / "ids.npy").write_bytes(b"nothing")
        with pytest.raises(DataError, match="missing or damaged"):
            Vocabulary.open(tmp_path)


class TestIndex:
    """Rows are found by hashes, which lie beside the ids in order."""

    def many(self, kind: str) -> pl.Series:
        numbers = pl.int_range(3_000, eager=True) * 7_919 - 500
        lengths = pl.int_range(3_000, eager=True) % 40
        if kind == "integers":
            return numbers
        return pl.select(
            pl.format("{}-{}", numbers, pl.lit("ü" * 40).str.head(lengths))
        ).to_series()

    @pytest.mark.parametrize("kind", ["integers", "texts"])
    def test_it_is_the_same_in_parts(self, tmp_path, monkeypatch, kind):
        ids = self.many(kind)
        Vocabulary(ids).save(tmp_path / "whole")
        monkeypatch.setattr(id_index, "_WHOLE", 100)
        monkeypatch.setattr(id_arrays, "IDS_AT_ONCE", 64)
        Vocabulary(ids).save(tmp_path / "parts")
        names = sorted(path.name for path in (tmp_path / "whole").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
        for name in names:
            both = [(tmp_path / one / name).read_bytes() for one in ("whole", "parts")]
            assert both[0] == both[1], name
        opened = Vocabulary.open(tmp_path / "parts")
        rows = np.arange(len(ids))[::-7]
        assert opened.rows(ids[rows]).tolist() == rows.tolist()
        assert opened.ids(rows).to_list() == ids[rows].to_list()
        others = Vocabulary(pl.concat([ids[:900].reverse(), ids[:50] + ids[:50]]))
        assert opened.rows_of(others).tolist() == [*range(899, -1, -1), *[-1] * 50]

    @pytest.mark.parametrize("kind", ["integers", "texts"])
    def test_ids_of_one_hash_are_told_apart(self, tmp_path, monkeypatch, kind):
        ids = self.many(kind)[:300]
        hashes = {one: getattr(id_arrays, one).hashes for one in ("NumberIds", "TextIds")}
        for name, plain in hashes.items():
            monkeypatch.setattr(
                getattr(id_arrays, name), "hashes", lambda self, plain=plain: plain(self) % 5
            )
        Vocabulary(ids).save(tmp_path)
        opened = Vocabulary.open(tmp_path)
        assert opened.rows(ids).tolist() == list(range(300))
        assert opened.rows([1, "x", *ids[:2]]).tolist() == [-1, -1, 0, 1]

    def test_texts_of_other_types_and_lengths(self):
        vocabulary = Vocabulary(pl.Series(["", "a", "a\0", "a" * 8, "a" * 9, "a" * 800, "1"]))
        asked = ["", "a", "a\0", "a" * 8, "a" * 9, "a" * 800, 1, "a\0\0", "a" * 801, "\0"]
        assert vocabulary.rows(asked).tolist() == [*range(7), -1, -1, -1]
        assert vocabulary.rows_of(Vocabulary(pl.Series([2, 1]))).tolist() == [-1, 6]

    def test_looking_up_ids_of_a_folder_reads_no_copy_of_all(self, tmp_path):
        Vocabulary(pl.Series(range(200_000)).cast(pl.String)).save(tmp_path)
        opened = Vocabulary.open(tmp_path)
        opened.rows(["5"])
        tracemalloc.start()
        assert opened.rows(["17", "x"]).tolist() == [17, -1]
        assert opened.ids([199_999]).to_list() == ["199999"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The ids alone have a megabyte.
        assert peak < 100_000

    @pytest.mark.parametrize("name", ["keys.npy", "rows.npy", "ids.npy", "offsets.npy"])
    @pytest.mark.parametrize("content", [None, b"", b"nothing", "longer", "floats"])
    def test_damage_is_found(self, tmp_path, name, content):
        Vocabulary(STRINGS).save(tmp_path)
        array = np.load(tmp_path / name)
        (tmp_path / name).unlink()
        if content == "longer":
            np.save(tmp_path / name, np.append(array, array[-1:]))
        elif content == "floats":
            np.save(tmp_path / name, array.astype(np.float32))
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="is missing or damaged"):
            Vocabulary.open(tmp_path)

    def test_long_texts_are_hashed_whole_and_at_once(self, monkeypatch):
        texts = [one + "x" * length for length in range(1_020, 1_030) for one in ("a", "b", "ü")]
        texts += [one[:-1] + "y" for one in texts] + ["x" * 1_000_000, "z"]
        vocabulary, steps, mixed = Vocabulary(pl.Series(texts)), [], id_arrays.mixed

        def counted(values: np.ndarray) -> np.ndarray:
            steps.append(len(values))
            return mixed(values)

        monkeypatch.setattr(id_arrays, "mixed", counted)
        asked = [*reversed(texts), "x" * 999_999]
        assert vocabulary.rows(asked).tolist() == [*range(len(texts) - 1, -1, -1), -1]
        hashes = id_arrays.ids_of(texts).hashes()
        assert len(np.unique(hashes)) == len(texts)
        assert len(steps) < 1_000

    @pytest.mark.parametrize("size", [2, 4, 10**9])
    def test_another_number_of_ids_is_refused(self, tmp_path, size):
        Vocabulary(STRINGS).save(tmp_path)
        path = tmp_path / "vocabulary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))
        with pytest.raises(DataError, match=f"it has 3 ids, not {size}"):
            Vocabulary.open(tmp_path)

    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("rows.npy", np.array([7, -3, 9], np.int32)),
            ("rows.npy", np.array([0, 0, 0], np.int32)),
            ("keys.npy", np.ones(3, np.uint64)),
        ],
    )
    def test_an_index_of_other_ids_is_refused(self, tmp_path, name, array):
        Vocabulary(STRINGS).save(tmp_path)
        np.save(tmp_path / name, array)
        with pytest.raises(DataError, match=r"damaged: keys\.npy or rows\.npy does not belong to"):
            Vocabulary.open(tmp_path).rows(["x", "12"])


@pytest.mark.parametrize("ids", [STRINGS, INTEGERS, INTEGERS.abs().cast(pl.UInt64)], ids=str)
def test_tables_of_earlier_versions_are_read(tmp_path, ids):
    opened = Vocabulary.open(write_table(tmp_path / "old", ids))
    shutil.rmtree(tmp_path / "old")
    assert opened.rows(ids.reverse()).tolist() == [2, 1, 0]
    assert opened.read().to_list() == ids.to_list()
    opened.save(tmp_path / "new")
    assert Vocabulary.open(tmp_path / "new").read().to_list() == ids.to_list()


def test_a_table_that_another_thread_has_read_meanwhile_is_read_all_the_same(tmp_path, monkeypatch):
    opened, came = Vocabulary.open(write_table(tmp_path / "old", STRINGS)), []

    def meanwhile(what: str) -> None:
        came.append(what)
        if len(came) == 1:
            assert opened.rows(["x"]).tolist() == [1]

    monkeypatch.setattr(vocabulary, "refuse_lost_threads", meanwhile)
    assert opened.rows(["ü"]).tolist() == [2]
    assert len(came) == 2


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        return write_table(tmp_path, STRINGS)

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
        self.change(folder, format=4)
        with pytest.raises(DataError, match="format 4, written by a newer blossomrec"):
            Vocabulary.open(folder)

    @pytest.mark.parametrize("change", [{"size": 4}, {"dtype": "Int64"}, {"fingerprint": "0"}])
    def test_ids_of_another_vocabulary(self, folder, change):
        self.change(folder, **change)
        with pytest.raises(DataError, match="does not belong"):
            Vocabulary.open(folder).rows(["x"])

    @pytest.mark.parametrize(
        "change",
        [{"size": 10**30}, {"size": -1}, {"size": "3"}, {"size": None}, {"dtype": 7}],
    )
    def test_values_of_other_types(self, folder, change):
        self.change(folder, **change)
        with pytest.raises(DataError, match=rf"vocabulary\.json is damaged: {next(iter(change))} "):
            Vocabulary.open(folder)

    def test_json_nested_too_deeply(self, folder):
        (folder / "vocabulary.json").write_text("[" * 200_000)
        with pytest.raises(DataError, match=r"vocabulary\.json is damaged: .* nested too deeply"):
            Vocabulary.open(folder)

    def test_more_ids_than_told_are_not_read(self, folder):
        pl.DataFrame({"id": pl.repeat("x", 2_000_000, eager=True)}).write_parquet(
            folder / "ids.parquet"
        )
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(DataError, match="does not belong"),
        ):
            patch.setattr(pl, "read_parquet", lambda *_: pytest.fail("it was read"))
            Vocabulary.open(folder).rows(["x"])

    @pytest.mark.parametrize("content", [None, b""])
    def test_no_ids(self, folder, content):
        (folder / "ids.parquet").unlink()
        if content is not None:
            (folder / "ids.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"ids\.parquet is missing or damaged"):
            Vocabulary.open(folder)

    def test_truncated_ids(self, folder):
        content = (folder / "ids.parquet").read_bytes()
        (folder / "ids.parquet").write_bytes(content[:50])
        with pytest.raises(DataError, match=r"ids\.parquet is damaged"):
            Vocabulary.open(folder).rows(["x"])
