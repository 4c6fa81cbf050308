"""Text files: quotes, line ends, separators, encodings; every line is a row or is refused."""

from __future__ import annotations

import csv
import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.reading.tables import read_table
from blossomrec.errors import ConfigError, DataError
from tables_of_events import read_events

HEADER = ("user_id", "item_id", "timestamp", "title")


def lines_of(titles, separator=",", eol="\n"):
    rows = [HEADER, *((f"u{n % 5}", f"t{n % 7}", 1_000 + n, t) for n, t in enumerate(titles))]
    return "".join(separator.join(map(str, row)) + eol for row in rows)


@pytest.fixture
def write(tmp_path):
    def writing(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writing


def titles(**odd):
    """40 titles, some of them by their number from 0: _8="..."."""
    return [odd.get(f"_{n}", "song") for n in range(40)]


def refusal(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_events(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message


STRAY = [
    titles(_8='"open', _29='"open'),
    titles(_8='"open', _29='12" mix'),
    titles(_8='"open'),
    titles(_8='12" mix'),
    titles(_39='"open'),
    titles(_8='"Heroes" live'),
]


class TestQuotes:
    @pytest.mark.parametrize("stray", STRAY)
    @pytest.mark.parametrize("suffix", [".tsv", ".inter"])
    def test_quotes_are_letters_where_tabs_separate(self, write, suffix, stray):
        events = read_events(write("e" + suffix, lines_of(stray, "\t")))
        assert events["timestamp"].to_list() == list(range(1_000, 1_040))

    @pytest.mark.parametrize("stray", STRAY[:5])
    def test_an_open_quote_in_csv_is_refused_with_its_row(self, write, stray):
        row = next(n for n, title in enumerate(stray) if '"' in title) + 1
        message = refusal(write("e.csv", lines_of(stray)))
        assert f", row {row} cannot be read: 'u{(row - 1) % 5}," in message
        assert "has a quote that is not closed on its line" in message

    def test_text_behind_a_quoted_field_is_refused_with_its_row(self, write):
        message = refusal(write("e.csv", lines_of(STRAY[5])))
        assert ", row 9 cannot be read: 'u3,t1,1008,\"Heroes\" live': " in message

    @pytest.mark.parametrize("stray", STRAY)
    def test_without_quoting_every_line_of_a_csv_is_an_event(self, write, stray):
        assert read_events(write("e.csv", lines_of(stray)), quote="none").height == 40

    def test_fields_over_line_ends_are_an_option(self, write):
        path = write("e.csv", lines_of(titles(_8='"one\n\ntwo"', _20='"a ""b"", c"')))
        assert ", row 9 cannot be read: 'u3,t1,1008,\"one'" in refusal(path)
        table = read_table(path, ReadOptions(multiline=True))
        assert table.events.height == 40 and table.lines == 43

    def test_quoting_is_an_option_where_tabs_separate(self, write):
        path = write("e.tsv", lines_of(['"a\tb"'] * 3, "\t"))
        assert "row 1: " in refusal(path) and "has 5 fields, the header has 4" in refusal(path)
        assert read_events(path, quote='"').height == 3

    def test_ids_are_taken_out_of_their_quotes(self, write):
        path = write("e.csv", 'user_id,item_id,timestamp\n"a, b","say ""x""",5\n"","y",6\n')
        assert "row 2: '' is not an id: it is empty" in refusal(path)
        write("e.csv", 'user_id,item_id,timestamp\n"a, b","say ""x""",5\nc,"y",6\n')
        assert read_events(path).rows()[0] == ("a, b", 'say "x"', 5)

    def test_names_in_quotes_hint_at_the_option(self, write):
        path = write("e.tsv", '"user_id"\t"item_id"\t"timestamp"\n"a"\t"x"\t5\n')
        assert refusal(path).endswith("give '\"' as the option quote")
        assert read_events(path, quote='"').rows() == [("a", "x", 5)]

    def test_an_open_quote_in_the_header(self, write):
        assert "header" in refusal(write("e.csv", 'user_id,item_id,timestamp,"x\n1,2,3,"\n'))

    def test_other_quotes(self, write):
        path = write("e.csv", "user_id,item_id,timestamp\n'a,b',x,5\n")
        assert read_events(path, quote="'")["user_id"].to_list() == ["a,b"]


class TestRows:
    def test_a_shifted_row_is_refused_also_by_columns_not_asked_for(self, write):
        text = "user_id,title,item_id,timestamp,stars\nu,Hello,1,5,4\nu,Hello, world,7,6,5\n"
        assert refusal(write("e.csv", text)).endswith(
            ", row 2: 'u,Hello, world,7,6,5' has 6 fields, the header has 5"
        )

    def test_short_rows_miss_what_is_asked_for_or_nothing(self, write):
        text = lines_of(titles())
        path = write("e.csv", text.replace("u1,t1,1001,song", "u1,t1,1001"))
        assert read_events(path).height == 40
        path = write("e.csv", text.replace("u0,t0,1000,song", "u0,t0"))
        assert "column 'timestamp', row 1: None is not a timestamp" in refusal(path)

    @pytest.mark.parametrize("eol", ["\n", "\r\n"])
    @pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
    @pytest.mark.parametrize("start", ["", "\n\n", "\ufeff"])
    def test_lines_are_counted(self, write, eol, end, start):
        text = (start + lines_of(titles()).removesuffix("\n") + end).replace("\n", eol)
        table = read_table(write("e.csv", text), ReadOptions())
        assert table.events.height == 40
        assert table.lines == 41 + start.count("\n") + max(end.count("\n") - 1, 0)

    def test_compressed_lines_are_counted(self, write):
        content = gzip.compress(lines_of(titles()).encode())
        more = gzip.compress(b"u,t,5,\nu,t,6,\n")
        table = read_table(write("e.CSV.GZ", content + more), ReadOptions())
        assert (table.lines, table.events.height) == (43, 42)

    @pytest.mark.parametrize(
        "content", [b"user_id", gzip.compress(b"x" * 10_000)[:-20]], ids=["text", "cut"]
    )
    def test_damaged_compression(self, write, content):
        assert "cannot be read" in refusal(write("e.csv.gz", content))

    @settings(max_examples=60, deadline=None)
    @given(
        fields=st.lists(
            st.lists(st.text("a\", \t'", min_size=1, max_size=5), min_size=2, max_size=2),
            min_size=1,
            max_size=8,
        )
    )
    def test_what_was_written_as_csv_comes_back(self, tmp_path_factory, fields):
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows([*row, n] for n, row in enumerate(fields))
        path = tmp_path_factory.mktemp("csv") / "e.csv"
        path.write_text(written.getvalue())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            read = read_events(path)
        assert [list(row) for row in read.rows()] == [[*row, n] for n, row in enumerate(fields)]

    @settings(max_examples=60, deadline=None)
    @given(notes=st.lists(st.text("a\",' \u20ac\\", max_size=6), min_size=1, max_size=8))
    def test_no_line_of_a_tsv_is_lost(self, tmp_path_factory, notes):
        path = tmp_path_factory.mktemp("tsv") / "e.tsv"
        path.write_text(lines_of(notes, "\t"), encoding="utf-8")
        assert read_events(path)["timestamp"].to_list() == [1_000 + n for n in range(len(notes))]


class TestForms:
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_other_encodings_are_refused(self, write, encoding):
        path = write("e.csv", lines_of(titles()).encode(encoding))
        assert refusal(path) == f"{path} is not UTF-8 text (UTF-16?): convert it to UTF-8"

    def test_bytes_that_are_no_utf8_are_refused_with_their_row(self, write):
        path = write("e.csv", lines_of(titles(_8="é")).encode("latin-1"))
        assert ", row 9 cannot be read: 'utf-8' codec can't decode" in refusal(path)
        path = write("e.csv", lines_of(titles()).replace("title", "tïtle").encode("latin-1"))
        assert "header" in refusal(path)

    @pytest.mark.parametrize("separator", [";", "|", "\t"])
    def test_separators(self, write, separator):
        path = write("e.csv", lines_of(titles(), separator))
        assert refusal(path) == (
            f"{path} separates its fields by {separator!r}, not by ',': give that as the option "
            "separator"
        )
        assert read_events(path, separator=separator).height == 40

    def test_a_tab_can_be_spelled(self, write):
        assert read_events(write("e.csv", lines_of(titles(), "\t")), separator="\\t").height == 40

    def test_carriage_returns_alone_are_refused(self, write):
        path = write("e.csv", lines_of(titles(), eol="\r"))
        assert refusal(path).endswith(
            "ends its lines with carriage returns: convert them to line feeds"
        )

    @pytest.mark.parametrize("name", ["E.CSV", "E.Csv"])
    def test_capitals_in_the_suffix(self, write, name):
        assert read_events(write(name, lines_of(titles()))).height == 40

    def test_blank_lines_alone(self, write):
        assert refusal(write("e.csv", "\n\n\n")).endswith("has no header: its lines are blank")

    def test_a_column_twice(self, write):
        path = write("e.csv", "user_id,item_id,item_id,timestamp\n1,10,20,1\n1,11,21,2\n")
        assert refusal(path) == (
            f"{path} has the column 'item_id' 2 times, as columns 2 and 3: "
            "it is not clear which one to read"
        )
        path = write("e.csv", "user_id,x,item_id,x,timestamp\n1,10,20,1,5\n1,11,21,2,6\n")
        assert read_events(path).rows() == [(1, 20, 5), (1, 21, 6)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"separator": ";;"}, "separator is ';;': a single ASCII character"),
            ({"separator": "\n"}, "separator is '\\\\n': it cannot be a line end"),
            ({"quote": ""}, "quote is '': a single ASCII character"),
            ({"separator": "'", "quote": "'"}, "separator and quote are both"),
            ({"user": None}, "user is None: the name of a column is needed"),
            ({"ties": "sort"}, "ties is 'sort': choose one of auto, keep, shuffle"),
            ({"usr": "x"}, "unknown option usr: known are user, item"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            read_events("none.csv", **options)
