"""Tables of item titles: every kind of file, and what is wrong with one."""

import polars as pl
import pytest

from blossomrec.errors import DataError
from blossomrec.serving.version.catalogue import MAX_TITLE, Catalogue, count_titles, read_titles


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_quotes_a_byte_order_mark_and_short_lines(tmp_path):
    text = '\ufeffitem_id,genre,title\n7,a,"<b>One, ""two""</b>"\na b,b, three \nc,d\n\n'
    table = write(tmp_path / "titles.csv", text)
    assert read_titles(table) == {"7": '<b>One, "two"</b>', "a b": "three"}


@pytest.mark.parametrize("name", ["items.tsv", "items.TSV"])
def test_a_quote_in_tsv_is_text(tmp_path, name):
    table = write(tmp_path / name, 'item_id\ttitle\n1\t"Heroes\n2\tOther\n')
    assert read_titles(table) == {"1": '"Heroes', "2": "Other"}


def test_recbole_calls_its_titles_by_their_kind(tmp_path):
    header = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"
    table = write(tmp_path / "films.item", f'{header}1\tA "B" C\tx y\n2\t\tz\n')
    assert read_titles(table) == {"1": 'A "B" C'}


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt64, pl.String, pl.Categorical, pl.Decimal(9, 0)])
def test_parquet_with_ids_of_any_kind_and_other_columns(tmp_path, dtype):
    ids = pl.Series("item_id", [3, 12]).cast(pl.String).cast(dtype)
    frame = pl.DataFrame({"price": [1.5, None], "title": ["Three", None]}).with_columns(ids)
    frame.write_parquet(tmp_path / "items[1].parquet")
    assert read_titles(tmp_path / "items[1].parquet") == {"3": "Three"}


def test_whole_floats_are_integers_as_in_events(tmp_path):
    frame = pl.DataFrame({"item_id": [3.0, 12.0], "title": ["Three", "Twelve"]})
    frame.write_parquet(tmp_path / "items.parquet")
    with pytest.warns(UserWarning, match="ids are floats"):
        assert read_titles(tmp_path / "items.parquet") == {"3": "Three", "12": "Twelve"}


def test_the_first_of_two_titles_holds_and_long_ones_are_cut(tmp_path):
    table = write(tmp_path / "t.csv", f"item_id,title\n1,One\n1,One\n1,Uno\n2,{'x' * 300}\n")
    with pytest.warns(UserWarning, match=r"1 rows have another title .* 'Uno' for '1'"):
        assert read_titles(table) == {"1": "One", "2": "x" * MAX_TITLE}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "", r"t\.csv has no column 'item_id': it is empty"),
        ("t.csv", "item_id;title\n1;a\n", r"no column 'item_id': its columns are 'item_id;title'"),
        ("t.csv", "item_id,name\n1,a\n", r"no column 'title': its columns are 'item_id', 'name'"),
        ("t.csv", "item_id,a_title,b_title\n1,a,b\n", "no column 'title'"),
        ("t.csv", "item_id,title\n", "has no items"),
        ("t.csv", "item_id,title\n1,\n2, \n", "has no titles: its column 'title' is empty"),
        ("t.csv", "item_id,title\n1,a\n,b\n", r"column 'item_id', row 2: '' is not an id"),
        ("t.csv", 'item_id,title\n1,"a\n2,b\n', r"cannot be read: .*unexpected end of data"),
        ("t.csv", 'item_id,title\n1,"a\n2,b"\n', r"t\.csv, line 3: .* over a line end"),
        ("t.item", "id:token\ttitle:token\n1\ta\n", "no column 'item_id': its columns are 'id'"),
        ("t.parquet", "PAR1", r"t\.parquet cannot be read: "),
        ("t.xlsx", "item_id,title\n", r"ends in '\.xlsx': known are \.parquet, \.csv"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, name, text, words):
    with pytest.raises(DataError, match=words) as caught:
        read_titles(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


def test_no_file_no_text_and_no_strings(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read: .*No such file"):
        read_titles(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("item_id,title\n1,Amélie\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv cannot be read: .*utf-8"):
        read_titles(tmp_path / "latin.csv")
    pl.DataFrame({"item_id": [1], "title": [2.5]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'title', row 1: 2\.5 .* strings are needed"):
        read_titles(tmp_path / "t.parquet")


def test_titles_of_other_items_are_refused(tmp_path):
    catalogue = Catalogue([1, 2, 300])
    assert count_titles({"1": "One", "7": "Seven", "300": "More"}, catalogue, tmp_path) == 2
    with pytest.raises(DataError, match=r"items has no title .* 'B01', \.\.\., .* '1', '2', '300'"):
        count_titles({"B01": "One"}, catalogue, tmp_path / "items")
