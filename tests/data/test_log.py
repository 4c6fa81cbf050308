"""Preparing a log and opening it again."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
import re
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from blossomrec.data import event_files
from blossomrec.data.log import EventLog
from blossomrec.data.summary import summary_table
from blossomrec.errors import ConfigError, DataError

EVENTS = pl.DataFrame(
    {
        "user_id": ["b", "a", "b", "a", "b", "c"],
        "item_id": [70, 70, 50, 60, 60, 70],
        "timestamp": [3, 9, 1, 2, 3, 4],
        "stars": [1, 2, 3, 4, 5, 6],
    }
)


def contents(log: EventLog) -> list[tuple]:
    """(user, item, time) of all events with external ids, in the order of the log."""
    rows = []
    for user in range(log.num_users):
        part = slice(log.offsets[user], log.offsets[user + 1])
        name = log.user_vocabulary.ids([user])[0]
        items = log.item_vocabulary.ids(log.history(user).items).to_list()
        rows += zip([name] * len(items), items, log.timestamps[part].tolist(), strict=True)
    return rows


def snapshot(folder) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestPrepare:
    def test_order_of_users_items_and_events(self, tmp_path):
        log = EventLog.prepare(EVENTS, tmp_path / "log", weight="stars")
        assert log.user_vocabulary.ids([0, 1, 2]).to_list() == ["a", "b", "c"]
        # 70 has three events; 60 two; 50 one.
        assert log.item_vocabulary.ids([0, 1, 2]).to_list() == [70, 60, 50]
        # Times 3 and 3 of user b keep the order of the table.
        assert contents(log) == [
            ("a", 60, 2),
            ("a", 70, 9),
            ("b", 50, 1),
            ("b", 70, 3),
            ("b", 60, 3),
            ("c", 70, 4),
        ]
        assert log.weights.tolist() == [4, 2, 3, 1, 5, 6]
        assert (log.num_users, log.num_items, log.num_events) == (3, 3, 6)
        dtypes = [a.dtype for a in (log.offsets, log.items, log.timestamps, log.weights)]
        assert dtypes == [np.int64, np.int32, np.int64, np.float32]
        assert all(isinstance(a, np.memmap) for a in (log.offsets, log.items, log.timestamps))
        assert not log.has_repeats

    def test_ties_in_popularity_are_in_order_of_id(self):
        events = EVENTS.with_columns(item_id=pl.Series([9, 8, 7, 9, 8, 7]))
        assert EventLog.prepare(events).item_vocabulary.ids([0, 1, 2]).to_list() == [7, 8, 9]

    def test_all_events_survive(self, tiny_events, tiny_log):
        expected = tiny_events.sort("user_id", "timestamp", maintain_order=True).rows()
        assert contents(tiny_log) == expected
        assert not tiny_log.has_repeats

    def test_reopening(self, repeat_log):
        again = EventLog.open(str(repeat_log.folder))
        assert contents(again) == contents(repeat_log)
        assert again.summary == repeat_log.summary and again.has_repeats
        assert again.item_vocabulary.fingerprint == repeat_log.item_vocabulary.fingerprint

    def test_opening_needs_no_polars_and_no_torch(self, tiny_log):
        code = (
            "import sys; from blossomrec import EventLog;"
            f"log = EventLog.open({str(tiny_log.folder)!r}); print(log.num_events);"
            "sys.exit('polars' in sys.modules or 'torch' in sys.modules)"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert int(out.stdout) == tiny_log.num_events

    def test_temporary_folder_lives_as_long_as_the_log(self):
        log = EventLog.prepare(EVENTS)
        folder = log.folder
        assert EventLog.open(folder).num_events == 6
        twin = copy.deepcopy(log)
        del log
        assert twin.user_vocabulary.ids([0]).to_list() == ["a"] and folder.exists()
        del twin
        assert not folder.exists() and not folder.parent.exists()
        assert EventLog.prepare(EVENTS).item_vocabulary.ids([0, 1]).to_list() == [70, 60]

    def test_temporary_folder_is_left_by_a_forked_child(self):
        log = EventLog.prepare(EVENTS)
        child = os.fork()
        if child == 0:
            log._temporary._finalizer()
            os._exit(0)
        os.waitpid(child, 0)
        assert EventLog.open(log.folder).num_events == 6

    def test_float_times_and_datetimes(self):
        times = [0.5, 3.25, 1.0, 2.0, 3.0, 4.0]
        log = EventLog.prepare(EVENTS.with_columns(timestamp=pl.Series(times)))
        assert log.timestamps.dtype == np.float64 and log.time_unit == "order"
        assert log.timestamps[:2].tolist() == [2.0, 3.25]
        moment = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
        times = [moment + dt.timedelta(hours=n) for n in range(6)]
        log = EventLog.prepare(EVENTS.with_columns(timestamp=pl.Series(times)))
        assert log.timestamps.dtype == np.int64 and log.time_unit == "microseconds"
        assert log.timestamps[-1] == int((moment.timestamp() + 5 * 3600) * 1_000_000)
        assert log.summary["time"]["first_iso"] == "2024-05-01T12:00:00Z"

    def test_filters_reach_the_log(self):
        # User b's last event, on item 60 at time 3, comes again a little later.
        later = EVENTS[4:5].with_columns(pl.col("timestamp") + 1)
        repeated = pl.concat([EVENTS, EVENTS[:2], later])
        log = EventLog.prepare(
            repeated, min_user_events=2, min_item_events=2, merge_repeats=True, drop_duplicates=True
        )
        assert contents(log) == [("a", 60, 2), ("a", 70, 9), ("b", 70, 3), ("b", 60, 3)]
        assert log.summary["dropped_users"] == 1 and log.summary["dropped_items"] == 1
        assert sum(entry["events"] for entry in log.summary["dropped"]) == 5
        assert log.options["min_user_events"] == 2 and log.options["user"] == "user_id"

    def test_history_out_of_range(self, tiny_log):
        for row in (-1, 60):
            with pytest.raises(IndexError, match=f"user row {row} is not from 0 to 59"):
                tiny_log.history(row)


class TestRefusals:
    @pytest.mark.parametrize(
        ("events", "options", "message"),
        [
            (EVENTS.filter(user_id="b"), {}, "has a single user, 'b': at least 2 are needed"),
            (EVENTS.filter(item_id=70), {}, "has a single item, 70: at least 2 are needed"),
            (EVENTS, {"min_user_events": 9}, r"dropping 6 \(user with fewer than 9 events\)"),
            (EVENTS, {"min_user_events": 3}, "after dropping .* has a single user, 'b'"),
            (EVENTS, {"min_item_events": 3}, "after dropping .* has a single item, 70"),
            (EVENTS, {"user": "customer"}, "no column 'customer'"),
        ],
    )
    def test_nothing_is_written(self, tmp_path, events, options, message):
        with pytest.raises(DataError, match=message):
            EventLog.prepare(events, tmp_path / "deep" / "log", **options)
        assert list(tmp_path.iterdir()) == []

    def test_filters_are_checked_before_reading(self, tmp_path):
        with pytest.raises(ConfigError, match="min_user_events is 0"):
            EventLog.prepare(tmp_path / "none.csv", tmp_path / "log", min_user_events=0)

    def test_a_failure_while_writing_leaves_the_old_log(self, tmp_path, monkeypatch):
        EventLog.prepare(EVENTS, tmp_path / "log")
        before = snapshot(tmp_path)
        original = event_files.append_array

        def full_disk(file, array):
            if "timestamps" in file.name:
                raise OSError("no space left")
            original(file, array)

        monkeypatch.setattr(event_files, "append_array", full_disk)
        with pytest.raises(DataError, match=r"log cannot be written: no space left"):
            EventLog.prepare(EVENTS[:5], tmp_path / "log")
        assert snapshot(tmp_path) == before

    def test_a_prepared_log_is_replaced_whole(self, tmp_path):
        old = EventLog.prepare(EVENTS, tmp_path / "log", weight="stars")
        new = EventLog.prepare(EVENTS[:5], tmp_path / "log")
        assert new.num_events == 5 and new.weights is None
        assert not list(tmp_path.rglob("weights.npy"))
        assert os.listdir(tmp_path) == ["log"]
        # The old one stays readable where it is still open.
        assert old.num_events == 6 and len(old.history(0).items) == 2

    def test_an_empty_folder_may_be_used(self, tmp_path):
        assert EventLog.prepare(EVENTS, tmp_path).num_events == 6

    @pytest.mark.parametrize("name", ["notes.txt", "items.npy"])
    def test_other_folders_are_left_alone(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(DataError, match=f"is not a prepared log .it holds {name}"):
            EventLog.prepare(EVENTS, tmp_path)
        assert snapshot(tmp_path) == {name: b"mine"}

    def test_a_log_with_other_files_in_it_is_left_alone(self, tmp_path):
        EventLog.prepare(EVENTS, tmp_path / "log")
        (tmp_path / "log" / "run").mkdir()
        with pytest.raises(DataError, match="it holds run"):
            EventLog.prepare(EVENTS, tmp_path / "log")
        assert (tmp_path / "log" / "run").is_dir()

    def test_a_file_in_the_place_of_the_folder(self, tmp_path):
        (tmp_path / "log").write_text("mine")
        with pytest.raises(DataError, match="is a file: give a folder"):
            EventLog.prepare(EVENTS, tmp_path / "log")


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        return EventLog.prepare(EVENTS, tmp_path / "log", weight="stars").folder

    def table(self, folder, name):
        (generation,) = (folder / name).iterdir()
        return generation

    def refusal(self, folder) -> str:
        with pytest.raises(DataError) as caught:
            EventLog.open(folder)
        return str(caught.value)

    def describe(self, folder, **changes):
        path = folder / "log.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def test_no_log(self, tmp_path):
        missing = tmp_path / "nowhere"
        assert self.refusal(missing) == (
            f"{missing} is not a prepared log of events: it has no log.json"
        )

    def test_newer_format(self, folder):
        self.describe(folder, format=4)
        assert "log.json has format 4, written by a newer blossomrec" in self.refusal(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "1"}'])
    def test_damaged_description(self, folder, text):
        (folder / "log.json").write_text(text)
        assert "log.json is damaged" in self.refusal(folder)

    @pytest.mark.parametrize("name", ["offsets", "items", "timestamps", "weights"])
    def test_arrays(self, folder, name):
        path = self.table(folder, "events") / f"{name}.npy"
        content = path.read_bytes()
        for damaged in (content[:-4], content[:20], b"", b"x" * len(content)):
            path.write_bytes(damaged)
            assert f"{name}.npy is missing or damaged" in self.refusal(folder)
        np.save(path, np.zeros(5))
        assert f"{name}.npy is damaged: it holds float64 [5]" in self.refusal(folder)
        path.unlink()
        assert f"{name}.npy is missing or damaged" in self.refusal(folder)

    def test_pickled_arrays_are_not_loaded(self, folder):
        path = self.table(folder, "events") / "items.npy"
        np.save(path, np.array([{}] * 6, dtype=object), allow_pickle=True)
        assert "items.npy is missing or damaged" in self.refusal(folder)

    @pytest.mark.parametrize("offsets", [[0, 3, 2, 6], [1, 2, 5, 6], [0, 2, 5, 7], [0, 2, 2, 6]])
    def test_offsets(self, folder, offsets):
        np.save(self.table(folder, "events") / "offsets.npy", np.array(offsets))
        assert "offsets.npy is damaged: it must rise from 0 to 6" in self.refusal(folder)

    def test_counts(self, folder):
        self.describe(folder, items=4)
        items = self.table(folder, "items")
        message = f"{items} is damaged: it has 3 ids, and log.json speaks of 4"
        assert self.refusal(folder) == message

    @pytest.mark.parametrize("name", ["users", "items", "events"])
    @pytest.mark.parametrize("size", [10**9, 10**30, -1, True, "6", None, 6.0])
    def test_sizes_that_are_not_there_take_no_memory(self, folder, name, size):
        self.describe(folder, **{name: size})
        tracemalloc.start()
        assert "damaged" in self.refusal(folder)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()

    @pytest.mark.parametrize(
        "generation", ["../../elsewhere", "", None, 7, "generation-1", "x" * 99]
    )
    def test_a_generation_elsewhere(self, folder, generation):
        self.describe(folder, generation=generation)
        assert "log.json is damaged: generation is" in self.refusal(folder)

    @pytest.mark.parametrize("change", [{"summary": None}, {"identity": 7}, {"summary": [1]}])
    def test_no_summary(self, folder, change):
        self.describe(folder, **change)
        assert "log.json is damaged: it has no summary or no identity" in self.refusal(folder)

    def test_json_nested_too_deeply(self, folder):
        (folder / "log.json").write_text("[" * 200_000)
        assert "log.json is damaged: it is nested too deeply" in self.refusal(folder)

    def test_missing_vocabulary(self, folder):
        users = self.table(folder, "users")
        (users / "vocabulary.json").unlink()
        assert self.refusal(folder).startswith(f"{users} is not a vocabulary")


class TestSummary:
    def test_numbers(self, tiny_log):
        summary = tiny_log.summary
        assert (summary["users"], summary["items"], summary["events"]) == (60, 80, 1830)
        assert summary["mean_length"] == 30.5
        lengths = np.arange(1, 61)
        for percentile in (10, 25, 50, 75, 90, 99):
            expected = np.percentile(lengths, percentile)
            assert summary["length_percentiles"][str(percentile)] == pytest.approx(expected)
        assert summary["length_percentiles"]["max"] == 60
        assert summary["time"] == {
            "first": 1_700_000_000,
            "last": 1_700_000_000 + 59 * 60,
            "unit": "seconds",
            "first_iso": "2023-11-14T22:13:20Z",
            "last_iso": "2023-11-14T23:12:20Z",
        }
        assert summary["dropped"] == [] and summary["has_repeats"] is False

    def test_share_of_long_histories(self):
        lengths = {"a": 2001, "b": 2000, "c": 1001, "d": 501, "e": 500}
        users = [user for user, length in lengths.items() for _ in range(length)]
        events = pl.DataFrame({"user_id": users}).with_columns(
            item_id=pl.int_range(len(users)), timestamp=pl.int_range(len(users))
        )
        summary = EventLog.prepare(events).summary
        assert summary["share_over"] == {"500": 0.8, "1000": 0.6, "2000": 0.2}
        # Places in a history are no points in time.
        assert set(summary["time"]) == {"first", "last", "unit"}

    def test_table_shows_it_all(self):
        events = EVENTS.with_columns(timestamp=pl.from_epoch(pl.Series([1.7e9] * 6)))
        log = EventLog.prepare(events, min_item_events=2)
        console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(summary_table(log.summary, title="my events"))
        text = console.export_text()
        for part in (
            "my events",
            "users over 1,000 events",
            "history length, 90 %",
            "2023-11-14T22:13:20Z",
            "item with fewer than 2 events",
            "1 events",
            "items dropped with them",
        ):
            assert part in text


def test_weights_are_stored_and_told_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = EventLog.prepare(EVENTS, weight="stars")
    assert log.summary["weights"] and log.options["weight"] == "stars"
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(summary_table(log.summary))
    assert re.search(r"weights\W+yes", console.export_text())


def test_reading_real_files():
    folder = os.environ.get("BLOSSOMREC_DATA")
    if not folder:
        pytest.skip("set BLOSSOMREC_DATA to a folder with ml-100k.inter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = EventLog.prepare(os.path.join(folder, "ml-100k.inter"))
    assert (log.num_users, log.num_items, log.num_events) == (943, 1682, 100_000)
    assert not log.has_repeats and log.summary["time"]["first_iso"].startswith("1997-09-20")
