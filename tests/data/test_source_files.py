"""Tables of several files: folders, patterns, and columns that stand in the paths."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.data.reading.files import SourceFiles
from blossomrec.data.reading.options import ReadOptions
from blossomrec.errors import DataError
from tables_of_events import read_events

EVENTS = pl.DataFrame(
    {
        "user_id": [1, 2, 3, 1, 2],
        "item_id": ["a", "b", "c", "d", "a"],
        "timestamp": [10, 20, 30, 40, 50],
    }
)


def write(folder, kind: str, *names: str):
    """The events over some files: two rows in each, what is left in the last one."""
    for number, name in enumerate(names):
        last = number == len(names) - 1
        part = EVENTS[2 * number :] if last else EVENTS[2 * number : 2 * number + 2]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            part.write_parquet(path)
        elif kind == "csv":
            part.write_csv(path)
        else:
            part.write_csv(path, separator="\t")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv"])
def test_a_folder_and_a_pattern_are_read_in_order_of_names(tmp_path, kind):
    folder = write(tmp_path / "in", kind, f"2024/b.{kind}", f"2024/c.{kind}", f"a.{kind}")
    (folder / "_SUCCESS").touch()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / f"x.{kind}").write_text("no table")
    (folder / "notes.txt").write_text("neither")
    assert read_events(folder).equals(EVENTS)
    assert read_events(f"{folder}/**/*.{kind}").equals(EVENTS)
    assert read_events(folder / "2024" / f"[bc].{kind}").equals(EVENTS[:4])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    EVENTS[:2].write_parquet(tmp_path / "e[1].parquet")
    EVENTS.write_parquet(tmp_path / "e1.parquet")
    assert read_events(tmp_path / "e[1].parquet").height == 2


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_partitions_are_columns(tmp_path, kind):
    names = [f"dt=2024-01-0{day}/shop=a%2Fb/part-0.{kind}" for day in (1, 2, 3)]
    folder = write(tmp_path / "x=1" / "in", kind, *names)
    for source in (folder, folder / "dt=*" / "shop=*" / f"*.{kind}"):
        events = read_events(source, timestamp="dt")
        days = [dt.datetime(2024, 1, day) for day in (1, 1, 2, 2, 3)]
        assert events["timestamp"].to_list() == days
        log = EventLog.prepare(source, timestamp="dt", context=("shop",))
        assert log.fields.context[0].names == ("a/b",)
    # What stands before the folder that was given is not part of the table.
    with pytest.raises(DataError, match="has no column 'x'"):
        read_events(folder, user="x")
    assert SourceFiles(folder, ReadOptions()).columns()[-2:] == ["dt", "shop"]
    # One partition of them is still that one.
    days = read_events(folder / "dt=2024-01-02", timestamp="dt")["timestamp"].to_list()
    assert days == [dt.datetime(2024, 1, 2)] * 2
    file = folder / "dt=2024-01-03" / "shop=a%2Fb" / f"part-0.{kind}"
    assert read_events(file, timestamp="dt")["timestamp"].to_list() == [dt.datetime(2024, 1, 3)]


def test_partitions_of_integers_and_missing_ones(tmp_path):
    names = ["user=7/a.parquet", "user=8/a.parquet", "user=9/a.parquet"]
    folder = write(tmp_path / "in", "parquet", *names)
    assert read_events(folder, user="user")["user_id"].to_list() == [7, 7, 8, 8, 9]
    (folder / "user=8").rename(folder / "user=__HIVE_DEFAULT_PARTITION__")
    with pytest.raises(DataError, match=r"user=__HIVE.*a.parquet, column 'user', row 1: None"):
        read_events(folder, user="user")


def test_a_wrong_value_is_named_with_the_file_it_is_in(tmp_path):
    folder = write(tmp_path / "in", "csv", "a.csv", "b.csv", "c.csv")
    text = (folder / "b.csv").read_text().replace("40", "late")
    (folder / "b.csv").write_text(text)
    with pytest.raises(DataError, match=r"b\.csv, column 'timestamp', row 2: 'late' is not"):
        read_events(folder)


def test_what_is_no_table_is_refused(tmp_path):
    folder = write(tmp_path / "in", "csv", "a.csv", "b.csv")
    EVENTS.write_parquet(folder / "c.parquet")
    with pytest.raises(DataError, match=r"several kinds, \.csv, \.parquet: give a pattern"):
        read_events(folder)
    assert read_events(folder / "*.csv").equals(EVENTS)
    with pytest.raises(DataError, match="fits no file"):
        read_events(folder / "*.tsv")
    pl.DataFrame({"user_id": [1], "item_id": ["a"]}).write_csv(folder / "d.csv")
    with pytest.raises(DataError, match=r"d\.csv has no column 'timestamp'"):
        read_events(folder / "*.csv")
    EventLog.prepare(EVENTS, tmp_path / "log")
    with pytest.raises(DataError, match="is a prepared log"):
        read_events(tmp_path / "log")


def test_types_that_differ_are_brought_together_or_refused(tmp_path):
    EVENTS.write_parquet(tmp_path / "a.parquet")
    EVENTS.with_columns(pl.col("user_id").cast(pl.Int16)).write_parquet(tmp_path / "b.parquet")
    assert read_events(tmp_path)["user_id"].to_list() == EVENTS["user_id"].to_list() * 2
    EVENTS.with_columns(user_id=pl.Series([[1]] * 5)).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="columns of different types"):
        read_events(tmp_path)


def test_the_digest_is_of_contents_and_partitions_not_of_names(tmp_path):
    def digest(path) -> str:
        return SourceFiles(path, ReadOptions()).digests().whole

    folder = write(tmp_path / "in", "csv", "dt=1/a.csv", "dt=2/a.csv", "dt=3/a.csv")
    known = digest(folder)
    (folder / "dt=1" / "a.csv").rename(folder / "dt=1" / "z.csv")
    assert digest(folder) == known
    (folder / "dt=1").rename(folder / "dt=4")
    assert digest(folder) != known
    assert digest(folder / "dt=2" / "a.csv") == digest(folder / "dt=2" / "*.csv")
