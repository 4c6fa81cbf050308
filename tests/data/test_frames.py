"""Parquet files and frames: time zones of any name, odd names of columns, times out of range."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from blossomrec.errors import DataError
from tables_of_events import read_events

BASE = {"user_id": [1, 1, 2], "item_id": [10, 11, 12], "timestamp": [1, 2, 3]}
ZONES = ["UTC", "+01:00", "+05:30", "-03:30", "Z", "UTC+01:00", "Europe/Berlin", "Mars/Olympus"]


def refusal(source, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_events(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestTimeZones:
    @pytest.fixture
    def write(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        def writing(name, values, unit, zone=None):
            path = tmp_path / "e.parquet"
            column = arrow.array(values, arrow.timestamp(unit, zone))
            parquet.write_table(arrow.table({**BASE, name: column}), path)
            return path

        return writing

    @pytest.mark.parametrize("zone", ZONES)
    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_an_instant_is_an_instant(self, write, zone, unit):
        factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        seconds = [1_700_000_000, -5, 1_700_000_001]
        path = write("timestamp", [second * factor for second in seconds], unit, zone)
        read = read_events(path)["timestamp"]
        assert read.dtype == pl.Datetime("us")
        assert read.to_physical().to_list() == [second * 10**6 for second in seconds]

    @pytest.mark.parametrize("zone", ZONES)
    def test_columns_not_asked_for_do_not_matter(self, write, zone):
        assert read_events(write("loaded_at", [2**62, 0, 1], "us", zone)).height == 3

    def test_a_column_of_another_type_is_named(self, write):
        path = write("when", [0, 1, 2], "us", "+05:30")
        assert "column 'when', row 1: 0 is of type Datetime(" in refusal(path, item="when")

    def test_nothing_else_is_printed_and_no_variable_stays(self, write):
        path = write("timestamp", [0, 1, 2], "us", "+05:30")
        code = (
            "import os; from blossomrec import EventLog;"
            f"print(EventLog.prepare({str(path)!r}).num_events, sorted(os.environ) == names)"
        )
        code = "import os; names = sorted(os.environ);" + code
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == ("3 True", "")

    def test_the_variable_of_the_user_stays(self, write, monkeypatch):
        monkeypatch.setenv("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "0")
        assert read_events(write("timestamp", [0, 1, 2], "us", "+05:30")).height == 3
        assert os.environ["POLARS_IGNORE_TIMEZONE_PARSE_ERROR"] == "0"

    def test_pandas(self):
        pandas = pytest.importorskip("pandas")
        times = pandas.to_datetime([f"2024-01-01T10:00:0{n}+05:30" for n in range(3)])
        read = read_events(pandas.DataFrame(BASE | {"timestamp": times}))["timestamp"]
        assert read[2] == dt.datetime(2024, 1, 1, 4, 30, 2)
        zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
        objects = pandas.Series([dt.datetime(2024, 1, 1, 10, tzinfo=zone)] * 3, dtype=object)
        read = read_events(pandas.DataFrame(BASE | {"timestamp": objects}))["timestamp"]
        assert read[0] == dt.datetime(2024, 1, 1, 4, 30)


class TestRange:
    @pytest.mark.parametrize(
        ("value", "dtype", "unit"),
        [
            (253_402_300_800_000_000, pl.Datetime("us"), "us"),
            (-62_135_596_800_000_001, pl.Datetime("us"), "us"),
            (2**62, pl.Datetime("ms"), "ms"),
            (2**62, pl.Datetime("us", "UTC"), "us"),
            (2**31 - 1, pl.Date, "days"),
        ],
    )
    def test_years_python_does_not_have(self, value, dtype, unit):
        storage = pl.Int32 if dtype == pl.Date else pl.Int64
        times = pl.Series([0, value, 1], dtype=storage).cast(dtype)
        assert refusal(pl.DataFrame(BASE | {"timestamp": times})) == (
            f"the polars frame, column 'timestamp', row 2: {value} ({unit} since 1970) is not a "
            "timestamp: it is outside of the years 1 to 9999"
        )

    def test_the_last_and_the_first_moment(self):
        ends = [dt.datetime.min, dt.datetime.max, dt.datetime(1970, 1, 1)]
        assert read_events(pl.DataFrame(BASE | {"timestamp": ends}))["timestamp"].to_list() == ends
        days = [dt.date.min, dt.date.max, dt.date(1970, 1, 1)]
        read = read_events(pl.DataFrame(BASE | {"timestamp": days}))["timestamp"]
        assert read.dt.date().to_list() == days

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ([1.7e9, 1.0, 2.0], pl.Float32),
            ([2.0**24, 1.0, 2.0], pl.Float32),
            ([1.7e18, 1.0, 2.0], pl.Float64),
            (["9007199254740993", "0.5", "1"], pl.String),
            (["18446744073709551616", "1", "2"], pl.String),
        ],
    )
    def test_floats_that_merge_neighbouring_times(self, values, dtype):
        times = pl.Series(values, dtype=dtype)
        assert "this large stands for several times; give times as integers" in refusal(
            pl.DataFrame(BASE | {"timestamp": times})
        )

    def test_small_floats_of_32_bits_are_widened(self):
        times = pl.Series([0.5, 2.0**24 - 1, 3.0], dtype=pl.Float32)
        read = read_events(pl.DataFrame(BASE | {"timestamp": times}))["timestamp"]
        assert read.dtype == pl.Float64 and read.to_list() == [0.5, 2.0**24 - 1, 3.0]

    @pytest.mark.parametrize(
        "values", [["3", "1", "2"], ["2024-01-03", "2024-01-01", "2024-01-02"]]
    )
    def test_categories_are_text(self, values):
        plain = read_events(pl.DataFrame(BASE | {"timestamp": values}))
        categories = pl.Series(values, dtype=pl.Categorical)
        assert read_events(pl.DataFrame(BASE | {"timestamp": categories})).equals(plain)


class TestNames:
    def table(self):
        pandas = pytest.importorskip("pandas")
        return pandas, pandas.DataFrame(BASE)

    def test_a_column_twice_is_refused_only_where_it_is_asked_for(self):
        pandas, frame = self.table()
        twice = pandas.concat([frame, frame[["item_id"]]], axis=1)
        assert refusal(twice).startswith(
            "the pandas frame has the column 'item_id' 2 times, as columns 2 and 4"
        )
        other = twice.assign(thing=["a", "b", "c"])
        assert read_events(other, item="thing")["item_id"].to_list() == ["a", "b", "c"]

    @pytest.mark.parametrize("names", [(0, 1, 2), ("0", "1", "2"), (np.int64(0), 1, "2")])
    def test_numbers_as_names(self, names):
        pandas, frame = self.table()
        numbered = pandas.DataFrame(frame.to_numpy())
        user, item, timestamp = names
        read = read_events(numbered, user=user, item=item, timestamp=timestamp)
        assert read.rows() == [(1, 10, 1), (1, 11, 2), (2, 12, 3)]

    def test_the_exact_name_goes_first(self):
        _, frame = self.table()
        frame.columns = pytest.importorskip("pandas").Index([0, "0", "t"], dtype=object)
        assert read_events(frame, user=0, item="0", timestamp="t")["item_id"][0] == 10

    def test_missing_names_among_numbers(self):
        pandas, frame = self.table()
        message = refusal(pandas.DataFrame(frame.to_numpy()), user=7, item=1, timestamp=2)
        assert message == "the pandas frame has no column 7: its columns are 0, 1, 2"

    def test_names_in_levels(self):
        pandas, frame = self.table()
        frame.columns = pandas.MultiIndex.from_tuples([("a", "user"), ("a", "item"), ("b", "t")])
        read = read_events(frame, user=("a", "user"), item=("a", "item"), timestamp=("b", "t"))
        assert read.height == 3

    def test_parquet_with_a_column_twice(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = [arrow.array([1, 2]) for _ in range(4)]
        names = ["user_id", "item_id", "timestamp", "item_id"]
        parquet.write_table(arrow.Table.from_arrays(columns, names=names), tmp_path / "e.parquet")
        assert "has several columns of one name" in refusal(tmp_path / "e.parquet")
