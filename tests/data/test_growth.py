"""A log that grows holds what one prepared from all tables at once would hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from blossomrec.data.growth import append, grown_log, merge
from blossomrec.data.growth.append import append_items
from blossomrec.data.growth.appended import appended_table
from blossomrec.data.growth.compact import compact_folder
from blossomrec.data.log import EventLog
from blossomrec.data.log_folder import LogChange, changing
from blossomrec.errors import ConfigError, DataError

FIRST = pl.DataFrame(
    {
        "user_id": ["b", "a", "b", "a", "d"],
        "item_id": [70, 70, 50, 60, 60],
        "timestamp": [3, 9, 1, 2, 5],
        "what": ["click", "buy", None, "click", "click"],
        "shop": ["web", "web", "x", None, "x"],
        "price": [1.0, 2.0, None, 4.0, 0.5],
        "count": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)
SECOND = pl.DataFrame(
    {
        "user_id": ["c", "b", "a", "c", "b"],
        "item_id": [50, 90, 80, 70, 70],
        "timestamp": [4, 3, 1, 4, 0],
        "what": ["view", "click", None, "buy", "add"],
        "shop": ["y", None, "web", "a", "x"],
        "price": [None, 8.0, 1.5, 2.5, None],
        "count": [0.5, 1.5, 2.5, 3.5, 4.5],
    }
)
FIELDS = {"kind": "what", "context": ("shop", "price"), "weight": "count"}


def told(log: EventLog) -> dict:
    """All that a log says of every user's events, oldest first, in the words of its tables."""
    items = log.item_vocabulary.read().to_list()
    found = {}
    for row, user in enumerate(log.user_vocabulary.read().to_list()):
        part = slice(log.offsets[row], log.offsets[row + 1])
        events = []
        for place in range(*part.indices(log.num_events)):
            one = [items[log.items[place]], log.timestamps[place].item()]
            if log.weights is not None:
                one.append(log.weights[place].item())
            if log.kinds is not None:
                one.append(("?", *log.fields.kinds)[log.kinds[place]])
            if log.context is not None:
                one.append(log.fields.values(log.context[place]))
            events.append(tuple(one))
        found[user] = events
    return found


def grown(tmp_path: Path, *tables: pl.DataFrame, **options) -> EventLog:
    log = EventLog.prepare(tables[0], tmp_path / "log", **options)
    for table in tables[1:]:
        log.append(table)
    return EventLog.open(log.folder)


class TestAppend:
    def test_all_that_is_known_of_events_comes_with_them(self, tmp_path):
        log = grown(tmp_path, FIRST, SECOND, **FIELDS)
        whole = EventLog.prepare(pl.concat([FIRST, SECOND]), **FIELDS)
        assert told(log) == told(whole)
        # 90 is at the time of 70, which was there.
        assert [one[:2] for one in told(log)["b"]] == [(70, 0), (50, 1), (70, 3), (90, 3)]

    def test_rows_and_numbers_stay_and_new_ones_are_the_next(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log", **FIELDS)
        assert log.fields.kinds == ("click", "buy")
        new = log.append(SECOND)
        again = EventLog.open(log.folder)
        assert log.user_vocabulary.read().to_list() == ["a", "b", "d"]
        assert again.user_vocabulary.read().to_list() == ["a", "b", "d", "c"]
        assert again.item_vocabulary.read().to_list() == [60, 70, 50, 80, 90]
        assert log.item_vocabulary.read().to_list() == [60, 70, 50]
        assert again.fields.kinds == ("click", "buy", "add", "view")
        assert again.fields.context[0].names == ("web", "x", "a", "y")
        counts = (new.events, new.users, new.items, new.late, new.first, new.last)
        # Of "a" the event at 1, of "b" those at 0 and, the last one there being at 3, no other.
        assert counts == (5, 1, 2, 2, 0, 4) and new.is_new

    def test_the_summary_and_numbers_are_those_of_all_events(self, tmp_path):
        log = grown(tmp_path, FIRST, SECOND[:2], SECOND[2:], **FIELDS)
        whole = EventLog.prepare(pl.concat([FIRST, SECOND]), **FIELDS)
        same = ("users", "items", "events", "mean_length", "length_percentiles", "time")
        for name in (*same, "items_without_events", "has_repeats", "kinds", "weights"):
            assert log.summary[name] == whole.summary[name], name
        assert log.summary["appended_events"] == 5
        for one, other in zip(log.fields.context, whole.fields.context, strict=True):
            assert (one.name, one.kind) == (other.name, other.kind)
            assert one.mean == pytest.approx(other.mean)
            assert one.deviation == pytest.approx(other.deviation)
        assert log.has_repeats and whole.has_repeats
        assert log.summary["context"][1]["known"] == pytest.approx(0.7)

    def test_repeats_that_an_append_brings_are_seen(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        assert not log.has_repeats
        log.append(FIRST[:1].with_columns(item_id=80))
        assert not EventLog.open(log.folder).has_repeats
        log.append(FIRST[:1].with_columns(timestamp=8))
        assert EventLog.open(log.folder).has_repeats

    def test_the_identity_is_of_what_the_log_holds(self, tmp_path):
        one = grown(tmp_path / "1", FIRST, SECOND[:2], SECOND[2:], **FIELDS)
        other = EventLog.prepare(FIRST, tmp_path / "2", **FIELDS)
        before = other.digest
        for part in (SECOND[:2], SECOND[2:]):
            other.append(part)
            compact_folder(other.folder)
        other = EventLog.open(other.folder)
        assert one.identity == other.identity
        assert other.digest != before

    def test_filters_are_not_applied_again(self, tmp_path):
        log = grown(tmp_path, FIRST, SECOND, min_user_events=2)
        assert told(log)["c"] == [(50, 4), (70, 4)]
        assert "d" not in told(log)

    def test_columns_may_have_other_names(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log", user="user_id", weight="count")
        log.append(SECOND.rename({"user_id": "who", "count": "n"}), user="who", weight="n")
        whole = EventLog.prepare(pl.concat([FIRST, SECOND]), weight="count")
        assert told(EventLog.open(log.folder)) == told(whole)

    def test_a_column_that_the_log_has_no_room_for(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        for name, column in (("kind", "what"), ("weight", "count")):
            with pytest.raises(ConfigError, match=f"{name} is '{column}': .*without {name}s"):
                log.append(SECOND, **{name: column})
        assert EventLog.open(log.folder).identity == log.identity

    def test_a_table_may_lack_all_kinds_and_context(self, tmp_path):
        names = ("what", "shop", "price")
        empty = SECOND[:2].with_columns(**{name: pl.lit(None) for name in names})
        log = grown(tmp_path, FIRST, empty, **FIELDS)
        assert told(log)["c"] == [(50, 4, 0.5, "?", None)]

    def test_shuffled_ties_stay_shuffled(self, tmp_path):
        rows = np.arange(300)
        table = pl.DataFrame({"user_id": rows % 3, "item_id": rows, "timestamp": rows * 0})
        first, second = table, table.with_columns(timestamp=1)
        with pytest.warns(UserWarning, match="shuffled"):
            log = EventLog.prepare(first, tmp_path / "log")
        log.append(second)
        items = EventLog.open(log.folder).history(0).items[100:]
        assert sorted(items) == sorted(set(items)) and (np.diff(items) < 0).mean() > 0.2

    def test_many_segments_are_merged_by_an_append(self, tmp_path, monkeypatch):
        monkeypatch.setattr(append, "MAX_SEGMENTS", 2)
        log = EventLog.prepare(FIRST, tmp_path / "log", **FIELDS)
        counts = []
        for row in range(len(SECOND)):
            log.append(SECOND[row : row + 1])
            counts.append(len(os.listdir(log.folder / "segments")))
        assert counts == [1, 2, 1, 2, 1]
        whole = EventLog.prepare(pl.concat([FIRST, SECOND]), **FIELDS)
        assert told(EventLog.open(log.folder)) == told(whole)


@pytest.fixture
def mapped(tmp_path):
    """64 MiB of numbers on disk."""
    np.save(tmp_path / "numbers.npy", np.arange(2**23))
    return np.load(tmp_path / "numbers.npy", mmap_mode="r")


def test_values_are_read_in_pieces(mapped, monkeypatch):
    monkeypatch.setattr(grown_log, "VALUES_AT_ONCE", 3)
    for places in ([], [5], [2**23 - 1, 0, 7, 7, 2**22, 1, 2]):
        assert grown_log.values_at(mapped, np.array(places, np.int64)).tolist() == places


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it")
def test_pages_of_values_that_lie_far_apart_do_not_stay(mapped, monkeypatch):
    """Those around each value would be the whole array."""
    monkeypatch.setattr(grown_log, "VALUES_AT_ONCE", 64)

    def mapped_mib():
        status = Path("/proc/self/status").read_text()
        # Of a file that lies in memory, they are told apart.
        return sum(int(status.split(f"{n}:")[1].split()[0]) for n in ("RssFile", "RssShmem")) / 1024

    before, places = mapped_mib(), np.arange(0, 2**23, 2**12)
    assert (grown_log.values_at(mapped, places) == places).all()
    assert mapped_mib() - before < 16
    # Read by the mapping that stays, they do.
    assert (mapped[places] == places).all() and mapped_mib() - before > 48


def test_an_append_takes_no_pytorch(tmp_path):
    log = EventLog.prepare(FIRST, tmp_path / "log")
    SECOND.write_parquet(tmp_path / "second.parquet")
    code = (
        "import sys; from blossomrec.cli import main; assert main(sys.argv[1:]) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    asked = ["append", log.folder, tmp_path / "second.parquet"]
    subprocess.run([sys.executable, "-c", code, *asked], check=True, capture_output=True)
    assert EventLog.open(log.folder).num_events == 10


class TestOnce:
    @pytest.mark.parametrize("folder", ["days", "days/dt=1"], ids=["plain", "partition"])
    def test_files_of_a_folder_are_known_one_by_one(self, tmp_path, folder):
        days = tmp_path / folder
        days.mkdir(parents=True)
        FIRST.write_csv(days / "first.csv")
        SECOND.write_csv(days / "second.csv")
        log = EventLog.prepare(days, tmp_path / "log")
        for again in (days, days / "first.csv", days / "second.csv"):
            assert not log.append(again).is_new
        SECOND[:2].write_csv(days / "third.csv")
        with pytest.raises(DataError, match=r"2 of 3 files were taken in before, such as .*first"):
            log.append(days)
        assert EventLog.open(log.folder).num_events == 10
        assert log.append(days / "third.csv").events == 2
        assert not log.append(days / "third.csv").is_new
        # A key says that all of them are to be taken in.
        assert log.append(days, key="all of them").events == 12

    def test_a_table_is_taken_in_once(self, tmp_path):
        FIRST.write_csv(tmp_path / "first.csv")
        SECOND.write_csv(tmp_path / "second.csv")
        log = EventLog.prepare(tmp_path / "first.csv", tmp_path / "log")
        shutil.copy(tmp_path / "second.csv", tmp_path / "copy.csv")
        assert log.append(tmp_path / "second.csv").is_new
        before = (log.folder / "log.json").read_bytes()
        for again in ("second.csv", "copy.csv", "first.csv"):
            assert not log.append(tmp_path / again).is_new
        assert (log.folder / "log.json").read_bytes() == before
        assert EventLog.open(log.folder).num_events == 10
        assert not log.append(tmp_path / "copy.csv").is_new

    def test_a_frame_too(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log", **FIELDS)
        assert not log.append(FIRST).is_new
        assert log.append(SECOND).is_new and not log.append(SECOND).is_new
        assert log.append(SECOND.with_columns(pl.col("price") + 1)).is_new

    def test_a_key_decides_where_it_is_given(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        assert log.append(SECOND, key="monday").key == "monday"
        assert not log.append(SECOND[:1], key="monday").is_new
        assert log.append(SECOND, key="tuesday").is_new
        with pytest.raises(ConfigError, match="key is ' '"):
            log.append(SECOND, key=" ")

    def test_square_brackets_in_a_key_are_printed_as_they_are(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        console = Console(width=100)
        with console.capture() as printed:
            console.print(appended_table(log.append(SECOND, key="day[/1]")))
        assert " day[/1] " in printed.get()


class TestTables:
    ITEMS = pl.DataFrame(
        {
            "item_id": [70, 50, 40],
            "title": ["seventy", "fifty", "forty"],
            "tags": [["x", "y"], ["y"], []],
            "price": [1.0, None, 3.0],
            "point": [[1.0, 2.0], [3.0, 4.0], None],
        }
    )
    MORE = pl.DataFrame(
        {
            "item_id": [90, 50, 30],
            "point": [[9.0, 9.0], [5.0, 5.0], None],
            "title": ["ninety", "new fifty", "thirty"],
            "price": [9.0, 5.0, 3.5],
            "tags": [["z", "y"], ["x"], None],
            "other": [1, 2, 3],
        }
    )

    @pytest.mark.parametrize("fields", [{}, FIELDS], ids=["plain", "fields"])
    def test_a_table_of_items_comes_without_events(self, tmp_path, fields):
        log = EventLog.prepare(FIRST, tmp_path / "log", items=self.ITEMS, **fields)
        before = told(log)
        self.MORE.write_parquet(tmp_path / "more.parquet")
        new = append_items(log.folder, tmp_path / "more.parquet")
        assert (new.is_new, new.events, new.users, new.items) == (True, 0, 0, 2)
        # It stands between events that are there and others.
        assert log.append(SECOND).late == 2
        grown = EventLog.open(log.folder)
        assert [one[:2] for one in told(grown)["b"]] == [(70, 0), (50, 1), (70, 3), (90, 3)]
        items, titles = grown.item_vocabulary.read().to_list(), grown.item_features["title"]
        assert items == [60, 70, 50, 40, 30, 90, 80]
        words = ["", "seventy", "new fifty", "forty", "thirty", "ninety", ""]
        assert [titles[row] for row in range(7)] == words
        assert grown.summary["appended_events"] == 5 and told(log) == before

    def test_the_last_table_of_items_is_known(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log", items=self.ITEMS)
        paths = {name: tmp_path / f"{name}.parquet" for name in ("first", "more", "copy")}
        for name, table in zip(paths, (self.ITEMS, self.MORE, self.MORE), strict=True):
            table.write_parquet(paths[name])
        assert append_items(log.folder, paths["more"]).is_new
        title = EventLog.open(log.folder).item_features["title"]
        assert title[2] == "new fifty"
        folder = (log.folder / "log.json").read_bytes()
        assert not append_items(log.folder, paths["copy"]).is_new
        assert (log.folder / "log.json").read_bytes() == folder
        # What came before it, or comes with events in between, is another one again.
        assert append_items(log.folder, paths["first"]).is_new
        assert EventLog.open(log.folder).item_features["title"][2] == "fifty"
        log.append(SECOND, items=paths["more"])
        assert append_items(log.folder, paths["first"]).is_new
        assert EventLog.open(log.folder).item_features["title"][2] == "fifty"

    def test_a_table_of_items_needs_one_to_add_to(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        self.MORE.write_parquet(tmp_path / "more.parquet")
        with pytest.raises(ConfigError, match="has no table of items to add to"):
            append_items(log.folder, tmp_path / "more.parquet")
        assert sorted(os.listdir(log.folder)) == ["events", "items", "log.json", "users"]

    def test_rows_are_added_and_replaced(self, tmp_path):
        users = pl.DataFrame({"user_id": ["a", "b"], "age": [30, 40]})
        log = EventLog.prepare(FIRST, tmp_path / "log", items=self.ITEMS, users=users)
        more = pl.DataFrame({"user_id": ["b", "c", "e"], "age": [41, 50, 60]})
        log.append(SECOND, items=self.MORE, users=more)
        log.append(FIRST[:1].with_columns(user_id=pl.lit("f"), item_id=20))
        log = EventLog.open(log.folder)
        items, table = log.item_vocabulary.read().to_list(), log.item_features
        assert items == [60, 70, 50, 40, 30, 80, 90, 20]
        assert [table["title"][row] for row in range(8)] == [
            *("", "seventy", "new fifty", "forty", "thirty", "", "ninety", "")
        ]
        tags = [[], ["x", "y"], ["x"], [], [], [], ["z", "y"], []]
        assert [table["tags"][row] for row in range(8)] == tags
        nan = float("nan")
        prices = [nan, 1, 5, 3, 3.5, nan, 9, nan]
        np.testing.assert_array_equal(table["price"].values, np.array(prices, np.float32))
        points = table["point"].values
        assert points[[1, 2, 6]].tolist() == [[1, 2], [5, 5], [9, 9]]
        assert np.isnan(points[[0, 3, 4, 5, 7]]).all()
        assert log.user_vocabulary.read().to_list() == ["a", "b", "d", "c", "f"]
        ages = np.array([30, 41, nan, 50, nan], np.float32)
        np.testing.assert_array_equal(log.user_features["age"].values, ages)
        assert log.summary["items_without_events"] == 2

    def test_what_does_not_fit_is_refused(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log", items=self.ITEMS)
        with pytest.raises(DataError, match="no column 'title', which the log's table has"):
            log.append(SECOND, items=self.MORE.drop("title"))
        with pytest.raises(DataError, match="vectors have 1 numbers, those of the log 2"):
            log.append(SECOND, items=self.MORE.with_columns(point=pl.Series([[1.0]] * 3)))
        with pytest.raises(DataError, match="'x' is no id of the items: those of the log are inte"):
            log.append(SECOND, items=self.MORE.with_columns(item_id=pl.Series(["1", "x", "2"])))
        with pytest.raises(ConfigError, match="no table of users to add to"):
            log.append(SECOND, users=pl.DataFrame({"user_id": ["a"], "age": [1]}))
        assert EventLog.open(log.folder).num_events == 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"item_id": pl.Series(["1", "2", "03", "4", "5"])},
                r"'item_id', row 3: '03' is no id",
            ),
            ({"timestamp": pl.Series([1.0, 2.5, 3.0, 4.0, 5.0])}, "row 2: 2.5 is not whole"),
            ({"timestamp": pl.Series(["2024-01-01"] * 5)}, "is a datetime: the times of the log"),
            ({"what": pl.Series([[1]] * 5)}, "'what', row 1"),
            ({"price": pl.Series(["x"] * 5)}, "'price', row 1: 'x' is not a number"),
            ({"count": pl.Series([-1.0] * 5)}, "it is negative"),
        ],
    )
    def test_what_does_not_fit_the_log(self, tmp_path, change, words):
        log = EventLog.prepare(FIRST, tmp_path / "log", **FIELDS)
        before = {path: path.read_bytes() for path in log.folder.rglob("*") if path.is_file()}
        with pytest.raises(DataError, match=words):
            log.append(SECOND.with_columns(**change))
        after = {path: path.read_bytes() for path in log.folder.rglob("*") if path.is_file()}
        assert before == after

    @pytest.mark.parametrize("column", ["user_id", "timestamp", "what", "shop", "count"])
    def test_a_missing_column_is_named(self, tmp_path, column):
        log = EventLog.prepare(FIRST, tmp_path / "log", **FIELDS)
        with pytest.raises(DataError, match=f"has no column '{column}'"):
            log.append(SECOND.drop(column))

    def test_times_in_another_unit(self, tmp_path):
        seconds = FIRST.with_columns(pl.col("timestamp") + 1_700_000_000)
        log = EventLog.prepare(seconds, tmp_path / "log")
        with pytest.raises(DataError, match="1700000004000 is not a time in seconds since 1970"):
            log.append(SECOND.with_columns((pl.col("timestamp") + 1_700_000_000) * 1000))
        with pytest.raises(DataError, match="4 is not a time in seconds"):
            log.append(SECOND)
        assert log.append(SECOND.with_columns(pl.col("timestamp") + 1_700_000_000)).is_new

    def test_what_is_no_log(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        shutil.move(log.folder, tmp_path / "elsewhere")
        with pytest.raises(DataError, match="log is not a prepared log of events: it has no log"):
            log.append(SECOND)
        with pytest.raises(DataError, match="not a prepared log"):
            compact_folder(tmp_path)
        assert not (tmp_path / "log").exists()

    def test_an_unknown_option(self, tmp_path):
        with pytest.raises(ConfigError, match="unknown option min_user_events"):
            EventLog.prepare(FIRST, tmp_path / "log").append(SECOND, min_user_events=2)

    def test_text_ids_of_integers_are_the_same_ids(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        log.append(SECOND.with_columns(pl.col("item_id").cast(pl.String)))
        assert told(EventLog.open(log.folder)) == told(EventLog.prepare(pl.concat([FIRST, SECOND])))

    @pytest.mark.parametrize("name", ["items", "users", "offsets", "timestamps"])
    def test_a_damaged_segment_is_named(self, tmp_path, name):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        log.append(SECOND)
        (path,) = (log.folder / "segments").glob(f"*/{name}.npy")
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(DataError, match=f"{name}.npy is missing or damaged"):
            EventLog.open(log.folder)
        told_of = json.loads((log.folder / "log.json").read_text())
        (log.folder / "log.json").write_text(json.dumps(told_of | {"segments": [{"name": "/"}]}))
        with pytest.raises(DataError, match=r"log\.json is damaged"):
            EventLog.open(log.folder)


class TestReaders:
    def test_an_open_log_goes_on(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log", **FIELDS)
        before = told(log)
        log.append(SECOND)
        assert told(log) == before
        EventLog.open(log.folder)
        assert told(log) == before and log.num_users == 3

    def test_opening_merges_in_the_folder(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        log.append(SECOND)
        assert (log.folder / "segments").is_dir()
        again = EventLog.open(log.folder)
        assert sorted(os.listdir(log.folder)) == ["events", "items", "log.json", "users"]
        assert len(os.listdir(log.folder / "events")) == 1
        assert again.identity == EventLog.open(log.folder).identity
        assert compact_folder(log.folder) == 0

    @pytest.mark.parametrize("why", ["another writes it", "it cannot be written", "another's"])
    def test_opening_merges_elsewhere(self, tmp_path, monkeypatch, why):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        log.append(SECOND)
        before = sorted(path for path in log.folder.rglob("*"))
        if why == "it cannot be written":
            monkeypatch.setattr(os, "access", lambda path, mode: False)
            again = EventLog.open(log.folder)
        elif why == "another's":

            def refused(*_):
                raise PermissionError("events")

            with monkeypatch.context() as patch:
                patch.setattr(LogChange, "new_generation", refused)
                again = EventLog.open(log.folder)
        else:
            with changing(log.folder):
                again = EventLog.open(log.folder)
                with pytest.raises(DataError, match="being written by another process"):
                    log.append(SECOND[:1])
        assert sorted(path for path in log.folder.rglob("*")) == before
        assert again.folder == log.folder and not again.is_temporary
        assert told(again) == told(EventLog.prepare(pl.concat([FIRST, SECOND])))
        place = again._merged.path
        del again
        assert not place.exists()
        monkeypatch.undo()
        assert EventLog.open(log.folder).num_events == 10

    def test_opening_follows_one_that_merges_meanwhile(self, tmp_path, monkeypatch):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        log.append(SECOND)
        load, done = np.load, []

        def load_later(*arguments, **options):
            if not done and "segment" in str(arguments[0]):
                done.append(True)
                monkeypatch.setattr(os, "access", access)
                compact_folder(log.folder)
            return load(*arguments, **options)

        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        monkeypatch.setattr(np, "load", load_later)
        assert EventLog.open(log.folder).num_events == 10 and done


@st.composite
def tables(draw) -> tuple[list[pl.DataFrame], int]:
    """Some tables with the same columns, and how many events are merged at once."""
    count = draw(st.integers(2, 40))
    columns = {
        "user_id": draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)),
        "item_id": draw(st.lists(st.sampled_from("abcdefgh"), min_size=count, max_size=count)),
        "timestamp": draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)),
        "what": draw(st.lists(st.sampled_from(["x", "y", "z"]), min_size=count, max_size=count)),
        "count": list(range(count)),
    }
    cuts = sorted(draw(st.sets(st.integers(1, count - 1), max_size=4)))
    frame = pl.DataFrame(columns)
    pieces = [frame[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    return pieces, draw(st.integers(1, 12))


@settings(max_examples=40, deadline=None)
@given(given=tables(), opened=st.integers(0, 3))
def test_pieces_give_what_the_whole_gives(tmp_path_factory, given, opened):
    pieces, at_once = given
    enough = pl.DataFrame(
        {
            "user_id": [2, 3],
            "item_id": ["c", "d"],
            "timestamp": [5, 5],
            "what": ["x", "y"],
            "count": [98, 99],
        }
    )
    pieces[0] = pl.concat([enough, pieces[0]])
    options = {"kind": "what", "weight": "count", "ties": "keep"}
    folder = tmp_path_factory.mktemp("grown") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "EVENTS_AT_ONCE", at_once)
        # What only a power cut would show need not reach the disk.
        patch.setattr(os, "fsync", lambda handle: None)
        log = EventLog.prepare(pieces[0], folder, **options)
        for number, piece in enumerate(pieces[1:]):
            assert log.append(piece, key=str(number)).events == len(piece)
            if number == opened:
                EventLog.open(folder)
        log = EventLog.open(folder)
    whole = EventLog.prepare(pl.concat(pieces), **options)
    assert told(log) == told(whole)
    assert log.has_repeats == whole.has_repeats
    assert log.summary["kinds"] == whole.summary["kinds"]
    shutil.rmtree(folder.parent)
