"""Tables of items and users: kinds, values, faults, and what is kept on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from blossomrec.data.features import Categories, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.reading.features import read_features
from blossomrec.data.reading.kinds import parse_kinds
from blossomrec.data.reading.options import ReadOptions
from blossomrec.errors import ConfigError, DataError

FRAME = pl.DataFrame(
    {
        "item_id": [7, 3, 9],
        "title": ["Heat (1995)", None, "Alien"],
        "genres": ["Crime|Drama", "", "Horror| Crime |Crime"],
        "tags": [["a", "b"], [], None],
        "year": [1995, None, 1979],
        "brand_id": [4, 4, 5],
        "vector": [[1.0, 2.0], None, [0.5, 0.0]],
        "available": [True, False, None],
    }
)


def read(frame=FRAME, kinds=None, **options):
    return read_features(frame, "item_id", kinds or {}, ReadOptions(**options))


def aligned(ids, frame=FRAME, **given) -> Any:
    return read(frame, **given).aligned(pl.Series(ids))


def test_kinds_are_told_from_name_type_and_repeats():
    kinds = {
        "title": "title",
        "genres": "category",
        "tags": "category",
        "year": "number",
        "brand_id": "category",
        "vector": "vector",
        "available": "category",
    }
    assert read().kinds == kinds


def test_few_texts_among_numbers_are_told_of(tmp_path, recwarn):
    path = tmp_path / "items.csv"
    for last, kind, words in ((1991, "none", "left out"), (1990, "category", "taken as categ")):
        path.write_text(f"item_id,year,genre\n1,1990,a\n2,n/a,7\n3,{last},b\n")
        assert read(path, {"year": "category"}).kinds["year"] == "category"
        assert not recwarn.list
        with pytest.warns(UserWarning, match=rf"column 'year', row 2: 'n/a' is no .* are {words}"):
            assert read(path).kinds.get("year", "none") == kind


def test_rows_follow_the_vocabulary_and_what_is_missing_is_known_as_such():
    table = aligned([9, 1, 7])
    assert [table.titles[row] for row in range(3)] == ["Alien", "", "Heat (1995)"]
    genres = table["genres"]
    assert [genres[row] for row in range(3)] == [["Horror", "Crime"], [], ["Crime", "Drama"]]
    assert genres.names[0] == "Crime"  # the most frequent
    assert np.diff(genres.offsets).tolist() == [2, 1, 2]
    np.testing.assert_array_equal(table["year"].values, np.float32([1979, np.nan, 1995]))
    np.testing.assert_array_equal(
        table["vector"].values, np.float32([[0.5, 0], [np.nan, np.nan], [1, 2]])
    )


def test_ids_meet_as_text_too():
    assert aligned(["7"]).titles[0] == "Heat (1995)"


def test_a_kind_can_be_given():
    table = aligned([7, 3], kinds={"year": "category", "vector": "none"})
    assert isinstance(table["year"], Categories)
    assert table["year"][0] == ["1995"]
    assert "vector" not in table


def test_what_is_saved_is_what_is_opened(tmp_path):
    table = aligned([9, 7, 3, 8])
    table.save(tmp_path)
    opened: Any = FeatureTable.open(tmp_path)
    assert opened.digest == table.digest
    assert opened.summary() == table.summary()
    assert isinstance(opened["vector"].values, np.memmap)
    changed = aligned([9, 7, 8, 3])
    assert changed.digest != table.digest


def test_the_share_of_known_values_is_told():
    known = {one["name"]: one["known"] for one in aligned([7, 3, 9, 1]).summary()}
    assert known["title"] == known["genres"] == known["year"] == known["vector"] == 0.5
    assert known["brand_id"] == 0.75


@pytest.mark.parametrize("kind", [Titles, Categories, Numbers, Vectors])
def test_a_damaged_array_is_named(tmp_path, kind):
    table = aligned([9, 7])
    table.save(tmp_path)
    number = next(n for n, one in enumerate(table.values()) if isinstance(one, kind))
    part = "offsets" if kind in (Titles, Categories) else "values"
    path = tmp_path / f"feature-{number}-{part}.npy"
    np.save(path, np.zeros(1, np.int16))
    with pytest.raises(DataError, match=path.name):
        FeatureTable.open(tmp_path)


def test_numbers_of_unknown_categories_are_refused(tmp_path):
    table = FeatureTable(
        {"x": Categories(Titles.of(["a"]), np.array([1], np.int32), np.array([0, 1]))}, 1
    )
    table.save(tmp_path)
    np.save(tmp_path / "feature-0-values.npy", np.array([2], np.int32))
    with pytest.raises(DataError, match="feature-0-values"):
        FeatureTable.open(tmp_path)


FAULTS = {
    "an id twice": ({"item_id": [7, 7, 9]}, {}, r"'item_id', row 2: 7 stands in an earlier row"),
    "no id": ({"item_id": [7, None, 9]}, {}, r"column 'item_id', row 2: None"),
    "not finite": ({"year": [1.0, 2.0, float("inf")]}, {}, r"column 'year', row 3: inf"),
    "too large": ({"year": [1.0, 1e300, 2.0]}, {}, r"column 'year', row 2: 1e\+300"),
    "no number": ({"year": ["1", "b", "2"]}, {"year": "number"}, r"'year', row 2: 'b' is not a"),
    "other length": (
        {"vector": [[1.0, 2.0], [3.0], None]},
        {},
        r"column 'vector', row 2: \[3.0\] has another length than the first vector, 2",
    ),
    "nan in a vector": (
        {"vector": [[1.0, 2.0], None, [1.0, float("nan")]]},
        {},
        r"column 'vector', row 3: .*not finite",
    ),
    "no vector": ({"year": [1, 2, 3]}, {"year": "vector"}, r"column 'year', row 1: 1 is of type"),
    "no title": ({"year": [1, 2, 3]}, {"year": "title"}, r"column 'year', row 1: 1 is of type"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place(fault):
    columns, kinds, message = FAULTS[fault]
    frame = FRAME.with_columns(**{name: pl.Series(v, strict=False) for name, v in columns.items()})
    with pytest.raises(DataError, match=message):
        read(frame, kinds=kinds)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no column 'item_id': it has a, b"):
        read(pl.DataFrame({"a": [1], "b": [2]}))
    with pytest.raises(ConfigError, match="no column 'yaer'"):
        read(kinds={"yaer": "number"})
    with pytest.raises(ConfigError, match="kind of 'year' is 'money'"):
        read(kinds={"year": "money"})


def test_kinds_are_parsed_from_words():
    assert parse_kinds(["a=b=number", "c=none"]) == {"a=b": "number", "c": "none"}
    for word in ("number", "=number", "a=thing"):
        with pytest.raises(ConfigError, match=f"'{word}' is not COLUMN=KIND"):
            parse_kinds([word])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "item", "parquet"])
def test_files_of_every_kind_are_read(tmp_path, suffix):
    frame = FRAME.select("item_id", "title", "genres", "year")
    path = tmp_path / f"items.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    else:
        types = {"title": "token_seq", "year": "float"}
        typed = frame.rename({name: f"{name}:{types.get(name, 'token')}" for name in frame.columns})
        separator = "," if suffix == "csv" else "\t"
        (typed if suffix == "item" else frame).write_csv(path, separator=separator)
    found: Any = read_features(path, "item_id", {}, ReadOptions())
    assert found.kinds == {"title": "title", "genres": "category", "year": "number"}
    table: Any = found.aligned(pl.Series([9, 7]))
    assert table.titles[1] == "Heat (1995)"
    assert table["genres"][0] == ["Horror", "Crime"]
    assert table["year"].values.tolist() == [1979.0, 1995.0]


def test_pandas_frames_are_read():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"item_id": [1, 2], "genres": ["a|b", "b"], "price": [1.5, 2.5]})
    table: Any = read(frame).aligned(pl.Series([2, 1]))
    assert table["genres"][1] == ["b", "a"] or table["genres"][1] == ["a", "b"]
    assert table["price"].values.tolist() == [2.5, 1.5]
