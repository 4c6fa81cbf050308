"""A log takes the place of another: in one step, wherever the process ends."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from blossomrec.data.identity import differences
from blossomrec.data.log import EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError
from death_on_disk import Death, KilledError, what_is_left
from tables_of_ids import write_table

OLD = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 7], "timestamp": [1, 2, 3]})
NEW = pl.DataFrame({"user_id": [4, 5, 5], "item_id": [9, 8, 9], "timestamp": [1, 2, 3]})
# With all that a log can hold.
WHOLE = NEW.with_columns(what=pl.Series(["a", "b", "a"]), price=pl.Series([1.5, 2.5, 3.5]))
MORE: dict[str, Any] = {
    "kind": "what",
    "context": ("price",),
    "items": pl.DataFrame({"item_id": [9, 7], "title": ["a", "b"]}),
    "users": pl.DataFrame({"user_id": [4, 6], "age": [30, 40]}),
}


def users(log: EventLog) -> list[int]:
    return log.user_vocabulary.ids(np.arange(log.num_users)).to_list()


def first_format(folder: Path) -> None:
    """Turn a prepared log into one as it was before there were generations."""
    path = folder / "log.json"
    description = json.loads(path.read_text())
    generation = description.pop("generation")
    del description["identity"]
    for file in (folder / "events" / generation).iterdir():
        file.rename(folder / file.name)
    (folder / "events" / generation).rmdir()
    (folder / "events").rmdir()
    for table in ("users", "items"):
        ids = Vocabulary.open(folder / table / generation).read()
        shutil.rmtree(folder / table / generation)
        write_table(folder / table, ids)
    path.write_text(json.dumps(description | {"format": 1}))


@pytest.mark.parametrize("before", ["nothing", "empty", "old", "format 1"])
def test_killed_at_any_step_there_is_the_old_log_or_the_new(tmp_path, monkeypatch, before):
    # Hundreds of logs are written: what only a power cut would show need not reach the disk.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    start = tmp_path / "start"
    if before == "empty":
        start.mkdir()
    elif before != "nothing":
        EventLog.prepare(OLD, start)
        if before == "format 1":
            first_format(start)
    at, outcomes, met = 0, [], {}
    while True:
        folder = tmp_path / str(at) / "log"
        if before != "nothing":
            shutil.copytree(start, folder)
        with pytest.MonkeyPatch.context() as dying:
            death = Death(dying, at, ((os, "fsync"),))
            try:
                EventLog.prepare(WHOLE, folder, **MORE)
            except KilledError:
                killed = True
            else:
                killed = False
        killed = killed or death.seen > at
        if (left := what_is_left(folder.parent)) not in met:
            there = before in ("old", "format 1") or (folder / "log.json").exists()
            met[left] = users(EventLog.open(folder)) if there else None
            # Whatever was left, the next one prepares, and sweeps.
            assert users(EventLog.prepare(NEW, folder)) == [4, 5]
            assert sorted(os.listdir(folder)) == ["events", "items", "log.json", "users"]
            assert all(len(os.listdir(folder / name)) == 1 for name in ("events", "users", "items"))
        outcomes += [met[left]] if met[left] is not None else []
        if not killed:
            break
        at += 1
    assert at > 15
    assert outcomes[-1] == [4, 5]
    changes = [one != other for one, other in itertools.pairwise(outcomes)]
    assert sum(changes) == (1 if before in ("old", "format 1") else 0)


CHILD = """
import sys, time
import polars as pl
from blossomrec.data import event_files
from blossomrec.data.log import EventLog
append = event_files.append_array
def waiting(file, array):
    append(file, array)
    if "timestamps" in file.name:
        print("there", flush=True)
        time.sleep(600)
event_files.append_array = waiting
EventLog.prepare(pl.DataFrame({"user_id": [4, 5], "item_id": [8, 9], "timestamp": [1, 2]}), %r)
"""


def test_what_a_killed_process_has_left_is_swept(tmp_path):
    folder = tmp_path / "log"
    EventLog.prepare(OLD, folder)
    code = CHILD % str(folder)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "there\n"
        assert len(os.listdir(folder / "events")) == 2
        with pytest.raises(DataError, match="log is being written by another process"):
            EventLog.prepare(NEW, folder)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert users(EventLog.open(folder)) == [1, 2]
    EventLog.prepare(NEW, folder)
    assert len(os.listdir(folder / "events")) == 1


def test_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for events in (OLD, NEW):
        log = EventLog.prepare(events, ".")
        assert (tmp_path / "log.json").is_file() and os.listdir(".")
        assert users(log) == users(EventLog.open(tmp_path))


def test_nothing_beside_the_folder_is_touched(tmp_path, monkeypatch):
    """As where it is a mounted volume, or its parent belongs to someone else."""
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "lost+found").mkdir()
    touched, real = [], {name: getattr(os, name) for name in ("replace", "rename", "mkdir")}

    def watched(name):
        def call(*paths, **options):
            touched.extend(Path(path).absolute() for path in paths if isinstance(path, (str, Path)))
            return real[name](*paths, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, watched(name))
    for events in (OLD, NEW):
        assert users(EventLog.prepare(events, folder)) == events["user_id"].unique().to_list()
    assert touched
    assert {path for path in touched if not path.is_relative_to(folder)} == set()


def test_a_failure_leaves_no_folders(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="log cannot be written: no space left"):
        EventLog.prepare(OLD, tmp_path / "deep" / "log")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_like_a_table_is_left_alone(tmp_path):
    (tmp_path / "events" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is not a prepared log .it holds events"):
        EventLog.prepare(OLD, tmp_path)
    assert (tmp_path / "events" / "mine").is_dir()
    (tmp_path / "log" / "events").mkdir(parents=True)
    (tmp_path / "elsewhere" / "generation-0123456789abcdef").mkdir(parents=True)
    (tmp_path / "log" / "events").rmdir()
    (tmp_path / "log" / "events").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="it holds events"):
        EventLog.prepare(OLD, tmp_path / "log")
    assert os.listdir(tmp_path / "elsewhere")


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path, tiny_events):
    for name in ("log[1]", "log[2", "log*"):
        log = EventLog.prepare(tiny_events, tmp_path / name)
        assert log.num_events == len(tiny_events)
        assert EventLog.open(tmp_path / name).identity == log.identity


def test_an_open_log_goes_on_when_its_folder_is_prepared_again(tmp_path):
    log = EventLog.prepare(OLD, tmp_path / "log")
    EventLog.prepare(NEW, tmp_path / "log")
    assert users(log) == [1, 2]
    assert log.item_vocabulary.ids(log.history(0).items).to_list() == [7, 8]
    shutil.rmtree(tmp_path / "log")
    assert log.timestamps.tolist() == [1, 2, 3]


def test_opening_follows_a_log_that_is_prepared_meanwhile(tmp_path, monkeypatch):
    EventLog.prepare(OLD, tmp_path / "log")
    load, done = np.load, []

    def load_later(*arguments, **options):
        if not done:
            done.append(True)
            EventLog.prepare(NEW, tmp_path / "log")
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", load_later)
    assert users(EventLog.open(tmp_path / "log")) == [4, 5]


def test_a_lock_that_the_disk_does_not_know_stops_nobody(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert users(EventLog.prepare(OLD, tmp_path / "log")) == [1, 2]


class TestIdentity:
    def changed(self, **columns) -> dict:
        return EventLog.prepare(OLD.with_columns(**columns)).identity

    def test_it_is_what_is_held_not_where_or_when(self, tmp_path):
        log = EventLog.prepare(OLD, tmp_path / "log")
        again = EventLog.prepare(OLD, tmp_path / "other")
        assert again.identity == log.identity == EventLog.open(tmp_path / "log").identity
        assert again.digest == log.digest
        assert json.loads(json.dumps(log.identity)) == log.identity
        first_format(tmp_path / "other")
        old = EventLog.open(tmp_path / "other")
        assert (old.identity, old.digest) == (log.identity, log.digest)
        assert (
            users(old) == [1, 2] and old.history(0).items.tolist() == log.history(0).items.tolist()
        )

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"timestamp": pl.Series([1, 2, 4])}, "times"),
            ({"timestamp": pl.Series([1.0, 2.0, 3.0])}, "times"),
            ({"timestamp": pl.Series([2, 1, 3])}, "items of the events"),
            ({"user_id": pl.Series([1, 1, 3])}, "user ids"),
            ({"user_id": pl.Series([1, 2, 2])}, "lengths of histories"),
            ({"item_id": pl.Series([7, 9, 7])}, "item ids"),
            (
                {"user_id": pl.Series([1, 2, 3])},
                "users: 2, now 3, user ids, lengths of histories",
            ),
        ],
    )
    def test_every_part_counts_and_is_named(self, columns, words):
        known = EventLog.prepare(OLD).identity
        assert differences(known, known) == ""
        assert differences(known, self.changed(**columns)) == words

    def test_weights_count(self):
        logs = [
            EventLog.prepare(OLD.with_columns(w=pl.Series(values)), weight="w")
            for values in ([1, 2, 3], [1, 2, 4])
        ]
        assert differences(logs[0].identity, logs[1].identity) == "weights"
        assert differences(EventLog.prepare(OLD).identity, logs[0].identity) == "weights"
        assert len({log.digest for log in logs}) == 2


class TestPickle:
    def test_a_log_is_opened_again_by_its_path(self, tmp_path, monkeypatch):
        EventLog.prepare(OLD, tmp_path / "log")
        monkeypatch.chdir(tmp_path)
        content = pickle.dumps(EventLog.open("log"))
        assert len(content) < 1_000
        monkeypatch.chdir("/")
        assert users(pickle.loads(content)) == [1, 2]
        EventLog.prepare(NEW, tmp_path / "log")
        with pytest.raises(DataError, match="log has changed since this log was pickled"):
            pickle.loads(content)

    def test_a_temporary_log_is_refused_with_advice(self):
        with pytest.raises(
            DataError, match=r"EventLog\.prepare\(events, FOLDER\).*save_pretrained"
        ):
            pickle.dumps(EventLog.prepare(OLD))
