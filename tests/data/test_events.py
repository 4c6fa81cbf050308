"""Reading tables of events: what is understood, and how everything else is refused."""

from __future__ import annotations

import datetime as dt
import gzip

import numpy as np
import polars as pl
import pytest

from blossomrec.errors import DataError
from tables_of_events import read_events

ROWS = {"user_id": [1, 2, 3], "item_id": ["a", "b", "c"], "timestamp": [10, 20, 30]}


def frame(**columns) -> pl.DataFrame:
    return pl.DataFrame(ROWS | columns, strict=False)


def text_file(folder, text, name="events.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(source, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_events(source, **options)
    return str(caught.value)


class TestFiles:
    def test_every_kind_of_file_gives_the_same_events(self, tmp_path):
        expected = frame()
        expected.write_parquet(tmp_path / "events.parquet")
        expected.write_csv(tmp_path / "events.csv")
        expected.write_csv(tmp_path / "events.tsv", separator="\t")
        inter = "timestamp:float\tuser_id:token\trating:float\titem_id:token\n"
        inter += "10\t1\t5\ta\n20\t2\t4\tb\n30\t3\t3\tc\n"
        text_file(tmp_path, inter, "events.inter")
        text_file(tmp_path, gzip.compress((tmp_path / "events.csv").read_bytes()), "events.csv.gz")
        for path in tmp_path.iterdir():
            assert read_events(path).equals(expected), path
            assert read_events(str(path)).equals(expected), path

    def test_columns_are_renamed_and_others_left_out(self, tmp_path):
        path = text_file(tmp_path, "when,what,who,note,stars\n5,x,u,n,0.5\n6,y,v,n,2\n")
        events = read_events(path, user="who", item="what", timestamp="when", weight="stars")
        assert events.columns == ["user_id", "item_id", "timestamp", "weight"]
        assert events.rows() == [("u", "x", 5, 0.5), ("v", "y", 6, 2.0)]
        assert events["weight"].dtype == pl.Float32

    def test_recbole_quotes_nothing(self, tmp_path):
        text = 'user_id:token\titem_id:token\ttimestamp:float\n1\t"x\t5\n2\ty"\t6\n'
        assert read_events(text_file(tmp_path, text, "e.inter"))["item_id"].to_list() == [
            '"x',
            'y"',
        ]

    def test_windows_line_ends_byte_order_mark_and_last_blank_lines(self, tmp_path):
        text = "\ufeffuser_id,item_id,timestamp\r\n1,x,5\r\n2,y,6\r\n\r\n\r\n"
        assert read_events(text_file(tmp_path, text)).height == 2

    def test_blank_line_between_events_is_refused(self, tmp_path):
        text = "user_id,item_id,timestamp\n1,x,5\n\n2,y,6\n"
        assert "row 2: None is not an id: it is missing" in refusal(text_file(tmp_path, text))

    def test_brackets_in_file_names_are_no_pattern(self, tmp_path):
        frame().write_csv(tmp_path / "events[1].csv")
        frame().write_parquet(tmp_path / "events[1].parquet")
        assert read_events(tmp_path / "events[1].csv").height == 3
        assert read_events(tmp_path / "events[1].parquet").height == 3

    @pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
    def test_missing_file(self, tmp_path, name):
        assert refusal(tmp_path / name) == f"{tmp_path / name} does not exist"

    def test_unknown_suffix(self, tmp_path):
        path = text_file(tmp_path, "x", "events.xlsx")
        assert refusal(path) == (
            f"{path} ends in '.xlsx': known are .parquet, .csv, .tsv, .inter, .item, .user"
        )

    def test_folder(self, tmp_path):
        assert refusal(tmp_path).startswith(f"{tmp_path} is a folder without a file of events")

    @pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.inter", "e.parquet"])
    def test_empty_file(self, tmp_path, name):
        path = text_file(tmp_path, "", name)
        assert refusal(path) == f"{path} is empty"

    def test_header_without_rows(self, tmp_path):
        path = text_file(tmp_path, "user_id,item_id,timestamp\n")
        assert refusal(path) == f"{path} has no events: it has columns, but no rows"
        frame().clear().write_parquet(tmp_path / "e.parquet")
        assert "has no events" in refusal(tmp_path / "e.parquet")

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
    def test_truncated_parquet(self, tmp_path, kept):
        path = tmp_path / "e.parquet"
        pl.DataFrame({name: range(5000) for name in ROWS}).write_parquet(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        assert refusal(path).startswith(f"{path} cannot be read as Parquet (is it truncated?)")

    def test_corrupt_pages_of_parquet(self, tmp_path):
        path = tmp_path / "e.parquet"
        pl.DataFrame({name: range(5000) for name in ROWS}).write_parquet(path)
        content = bytearray(path.read_bytes())
        content[10:2000] = bytes(1990)
        path.write_bytes(content)
        assert refusal(path).startswith(f"{path} cannot be read as Parquet")

    def test_row_with_too_many_fields(self, tmp_path):
        path = text_file(tmp_path, "user_id,item_id,timestamp\n1,x,5\n2,y,6,7\n")
        assert refusal(path) == f"{path}, row 2: '2,y,6,7' has 4 fields, the header has 3"

    def test_row_with_too_few_fields(self, tmp_path):
        path = text_file(tmp_path, "user_id,item_id,timestamp\n1,x,5\n2,y\n3,z,4\n")
        assert refusal(path) == (
            f"{path}, column 'timestamp', row 2: None is not a timestamp: it is missing"
        )

    def test_text_that_is_not_utf8(self, tmp_path):
        path = text_file(tmp_path, b"user_id,item_id,timestamp\n1,x,5\n2,\xff\xfe,6\n")
        assert str(path) in refusal(path) and "decode" in refusal(path)


class TestColumns:
    def test_missing_column_names_those_there_and_the_closest(self, tmp_path):
        path = text_file(tmp_path, "User_ID,item_id,timestamp\n1,x,5\n")
        assert refusal(path) == (
            f"{path} has no column 'user_id': its columns are 'User_ID', 'item_id', 'timestamp'; "
            "did you mean 'User_ID'?"
        )
        message = refusal(pl.DataFrame({"a": [1]}))
        assert message == "the polars frame has no column 'user_id': its columns are 'a'"

    def test_one_column_for_two_things(self):
        assert "one column is given for two things" in refusal(frame(), user="item_id")

    @pytest.mark.parametrize("source", [None, [1, 2], {"user_id": [1]}])
    def test_not_a_table(self, source):
        assert f"a {type(source).__name__} is not a table of events" in refusal(source)


class TestIds:
    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ([3, 2, 1], pl.Int64),
            (pl.Series([3, 2, 1], dtype=pl.UInt8), pl.Int64),
            ([2**63 - 1, -(2**63), 0], pl.Int64),
            (pl.Series([2**64 - 1, 0, 5], dtype=pl.UInt64), pl.UInt64),
            (["x", "y z", "é"], pl.String),
            (["001", "1", "12345678901234567890123"], pl.String),
            (pl.Series(["x", "y", "x"], dtype=pl.Categorical), pl.String),
            (pl.Series([1, 2, 3], dtype=pl.Decimal(38, 0)), pl.Int64),
        ],
        ids=["int", "small", "int64", "uint64", "string", "digits", "categorical", "decimal"],
    )
    def test_ids_keep_type_and_value(self, values, dtype):
        read = read_events(frame(item_id=values))["item_id"]
        assert read.dtype == dtype
        assert read.to_list() == list(values)

    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            (["3", "-2", "0"], [3, -2, 0]),
            (["18446744073709551615", "1", "2"], [2**64 - 1, 1, 2]),
            (["18446744073709551616", "1", "2"], ["18446744073709551616", "1", "2"]),
            (["007", "7", "8"], ["007", "7", "8"]),
            (["+7", "7", "8"], ["+7", "7", "8"]),
            (["7", "x", "8"], ["7", "x", "8"]),
            (["nan", "x", "8"], ["nan", "x", "8"]),
        ],
    )
    def test_text_becomes_integers_only_without_loss(self, tmp_path, texts, expected):
        rows = "".join(f"u,{text},5\n" for text in texts)
        path = text_file(tmp_path, "user_id,item_id,timestamp\n" + rows)
        assert read_events(path)["item_id"].to_list() == expected

    def test_whole_floats_become_integers_and_it_is_said(self, tmp_path):
        with pytest.warns(UserWarning, match=r"column 'user_id': ids are floats.*1\.0 is 1"):
            read = read_events(frame(user_id=[1.0, 2.0, 3.0]))
        assert read["user_id"].to_list() == [1, 2, 3]
        path = text_file(tmp_path, "user_id,item_id,timestamp\n1.0,2,5\n3.0,4,6\n")
        with pytest.warns(UserWarning, match="ids are floats"):
            assert read_events(path)["user_id"].to_list() == [1, 3]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1, None, 3], "row 2: None is not an id: it is missing"),
            (["x", "y", ""], "row 3: '' is not an id: it is empty"),
            ([1.0, 2.5, 3.5], "row 2: 2.5 is not an id: it is not a whole number (and 1 more"),
            ([1.0, float("nan"), 2.0], "row 2: nan is not an id"),
            ([1.0, float("inf"), 2.0], "row 2: inf is not an id: it is not a whole number"),
            ([1.0, 2.0**53 + 2, 3.0], "row 2: 9007199254740994.0 is not an id: a float this la"),
            ([True, False, True], "row 1: True is of type Boolean: strings or integers are"),
            ([[1], [2], [3]], "row 1: [1] is of type List(Int64)"),
            (pl.Series([2**70, 1, 2], dtype=pl.Int128), "row 1: 1180591620717411303424 is not an"),
        ],
        ids=["null", "empty", "half", "nan", "inf", "inexact", "bool", "list", "int128"],
    )
    def test_refused(self, values, message):
        assert f"the polars frame, column 'item_id', {message}" in refusal(frame(item_id=values))

    @pytest.mark.parametrize("word", ["", "nan", "NULL", "None"])
    def test_missing_among_integers_in_text(self, tmp_path, word):
        path = text_file(tmp_path, f"user_id,item_id,timestamp\n1,7,5\n1,{word},6\n")
        assert f"{path}, column 'item_id', row 2:" in refusal(path)

    def test_long_values_are_shortened(self):
        message = refusal(frame(timestamp=["1", "2", "x" * 1000]))
        assert len(message) < 300 and "row 3" in message


class TestTimes:
    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ([3, -2, 1], pl.Int64),
            ([3.5, 2.0, -1.0], pl.Float64),
            (pl.Series([1, 2, 3], dtype=pl.UInt32), pl.Int64),
        ],
    )
    def test_numbers_keep_their_unit(self, values, dtype):
        read = read_events(frame(timestamp=values))["timestamp"]
        assert read.dtype == dtype
        assert read.to_list() == list(values)

    def test_datetimes_become_utc_microseconds(self):
        local = pl.Series([dt.datetime(2024, 7, 1, 12)] * 3).dt.replace_time_zone("Europe/Berlin")
        for unit in ("ms", "us", "ns"):
            read = read_events(frame(timestamp=local.dt.cast_time_unit(unit)))["timestamp"]
            assert read.dtype == pl.Datetime("us")
            assert read[0] == dt.datetime(2024, 7, 1, 10)

    def test_dates(self):
        read = read_events(frame(timestamp=[dt.date(2024, 1, day) for day in (1, 2, 3)]))
        assert read["timestamp"][1] == dt.datetime(2024, 1, 2)

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2024-01-31", dt.datetime(2024, 1, 31)),
            ("2024-01-31T18:45", dt.datetime(2024, 1, 31, 18, 45)),
            ("2024-01-31 18:45:01", dt.datetime(2024, 1, 31, 18, 45, 1)),
            ("2024-01-31T18:45:01.25", dt.datetime(2024, 1, 31, 18, 45, 1, 250_000)),
            ("2024-01-31T18:45:01Z", dt.datetime(2024, 1, 31, 18, 45, 1)),
            ("2024-01-31 18:45:01.5+02:00", dt.datetime(2024, 1, 31, 16, 45, 1, 500_000)),
            ("2024-01-31T18:45-01:30", dt.datetime(2024, 1, 31, 20, 15)),
        ],
    )
    def test_iso_text(self, tmp_path, text, moment):
        path = text_file(tmp_path, f"user_id,item_id,timestamp\n1,x,2024-01-01\n1,y,{text}\n")
        assert read_events(path)["timestamp"][1] == moment

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (["1", "soon", "3"], "row 2: 'soon' is not a number, but row 1 has one"),
            (["1", "2", "2024-01-01"], "row 3: '2024-01-01' is a datetime, but row 1 has a num"),
            (["2024-01-01", "7", "8"], "row 2: '7' is a number, but row 1 has a datetime (and 1"),
            (["2024-01-01", "01/02/24", "8"], "row 3: '8' is a number, but row 1 has a datetime"),
            (["2024-01-01", "2024-02-30", "2024-01-01"], "row 2: '2024-02-30' is neither a num"),
            (["now", "1", "2"], "row 1: 'now' is neither a number nor an ISO 8601"),
            (["1", "", "2"], "row 2: '' is not a timestamp: it is empty"),
            (["1", "inf", "2"], "row 2: inf is not a timestamp: it is not finite"),
            ([1.0, float("nan"), 2.0], "row 2: nan is not a timestamp"),
            ([1.0, 2.0, float("-inf")], "row 3: -inf is not a timestamp: it is not finite"),
            ([1, None, None], "row 2: None is not a timestamp: it is missing (and 1 more rows)"),
            ([dt.timedelta(1)] * 3, "row 1: datetime.timedelta(days=1) is of type Duration"),
            (pl.Series([2**63, 1, 2], dtype=pl.UInt64), "row 1: 9223372036854775808 is too lar"),
        ],
    )
    def test_refused(self, values, message):
        assert f"the polars frame, column 'timestamp', {message}" in refusal(
            frame(timestamp=values)
        )


class TestWeights:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1.0, None, 2.0], "row 2: None is not a weight: it is missing"),
            ([1.0, float("nan"), 2.0], "row 2: nan is not a weight"),
            (["1", "much", "2"], "row 2: 'much' is not a number"),
            ([True, True, False], "row 1: True is of type Boolean: numbers are needed"),
            ([1.0, 2.0, 1e300], "row 3: 1e+300 is not a weight: it is not finite in 32 bits"),
            (["1", "1e39", "2"], "row 2: '1e39' is not a weight: it is not finite in 32 bits"),
            ([1.0, float("inf"), 2.0], "row 2: inf is not a weight: it is not finite"),
            ([1, -2, 3], "row 2: -2 is not a weight: it is negative"),
            (["1", "2", "-0.5"], "row 3: '-0.5' is not a weight: it is negative"),
            ([0.0, -1.0, -2.0], "row 2: -1.0 is not a weight: it is negative (and 1 more rows)"),
        ],
    )
    def test_refused(self, values, message):
        assert f"column 'w', {message}" in refusal(frame(w=values), weight="w")


class TestPandas:
    def table(self, **columns):
        pandas = pytest.importorskip("pandas")
        return pandas.DataFrame(ROWS | columns, index=[7, 7, 9])

    def test_plain_frame(self):
        assert read_events(self.table()).equals(frame())

    def test_large_unsigned_ids(self):
        ids = np.array([2**63 + 1, 1, 2], dtype=np.uint64)
        assert read_events(self.table(item_id=ids))["item_id"].to_list() == ids.tolist()

    def test_datetimes_with_a_zone(self):
        pandas = pytest.importorskip("pandas")
        times = pandas.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"])
        read = read_events(self.table(timestamp=times.tz_localize("Asia/Tokyo")))
        assert read["timestamp"][0] == dt.datetime(2023, 12, 31, 15)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"user_id": [1.0, None, 2.0]}, "column 'user_id', row 2: nan is not an id"),
            ({"item_id": ["a", None, "b"]}, "column 'item_id', row 2: None is not an id"),
            ({"item_id": [1, "a", "b"]}, "row 2: 'a' is of type str, but row 1 has int"),
            ({"item_id": [2**70, 1, 2]}, "row 1: 1180591620717411303424 has over 64 bits"),
            (
                {"timestamp": [dt.datetime(2024, 1, 1), 5, 6]},
                "column 'timestamp', row 2: 5 is of type int, but row 1 has datetime",
            ),
        ],
    )
    def test_refused(self, columns, message):
        refused = refusal(self.table(**columns))
        assert refused.startswith("the pandas frame") and message in refused
