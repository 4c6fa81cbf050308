"""Appending, merging and forgetting in one step each, and what is left on disk afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from blossomrec.data import event_files
from blossomrec.data.growth.append import append_events
from blossomrec.data.growth.compact import compact_folder
from blossomrec.data.growth.forget import forget_user, forget_users
from blossomrec.data.growth.grown_log import GrownLog
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.growth.segment import OpenSegment
from blossomrec.data.log import EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError
from death_on_disk import Death, KilledError, what_is_left

FIRST = pl.DataFrame(
    {
        "user_id": ["ann", "ann", "bob", "cid"],
        "item_id": [7, 8, 7, 9],
        "timestamp": [1, 2, 3, 4],
        "what": ["a", "b", "a", "a"],
        "shop": ["x", "y", "x", None],
    }
)
SECOND = pl.DataFrame(
    {
        "user_id": ["dan", "ann", "bob"],
        "item_id": [8, 6, 6],
        "timestamp": [2, 1, 9],
        "what": ["a", "c", "b"],
        "shop": ["z", "x", "w"],
    }
)
ITEMS = pl.DataFrame({"item_id": [7, 5], "title": ["seven", "five"]})
OPTIONS: dict[str, Any] = {"kind": "what", "context": ("shop",), "items": ITEMS}


def events(log: EventLog) -> list[tuple]:
    users = np.repeat(np.arange(log.num_users), np.diff(log.offsets))
    names = log.user_vocabulary.ids(users).to_list()
    items = log.item_vocabulary.ids(np.asarray(log.items)).to_list()
    return sorted(zip(names, log.timestamps.tolist(), items, strict=True))


def rows(*tables: pl.DataFrame) -> list[tuple]:
    return sorted(pl.concat(tables).select("user_id", "timestamp", "item_id").iter_rows())


def append(folder: Path) -> None:
    append_events(SECOND, folder, AppendOptions(items=cast(Any, ITEMS)))


def compact(folder: Path) -> None:
    compact_folder(folder)


def forget(folder: Path) -> None:
    forget_user(folder, "ann")


OLD = rows(FIRST, SECOND)
STEPS = {
    "append": (append, False, rows(FIRST), OLD),
    "compact": (compact, True, OLD, OLD),
    "forget": (forget, True, OLD, [one for one in OLD if one[0] != "ann"]),
}


@pytest.mark.parametrize("what", STEPS)
def test_killed_at_any_step_there_is_the_old_log_or_the_new(tmp_path, monkeypatch, what):
    step, grown, old, new = STEPS[what]
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    log = EventLog.prepare(FIRST, tmp_path / "start", **OPTIONS)
    if grown:
        log.append(SECOND)
    at, outcomes, met = 0, [], {}
    while True:
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "start", folder)
        with pytest.MonkeyPatch.context() as dying:
            death = Death(dying, at, ((event_files, "append_array"),))
            with contextlib.suppress(KilledError):
                step(folder)
        if (left := what_is_left(folder)) not in met:
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            met[left] = events(EventLog.open(copy))
            shutil.rmtree(copy)
            # Whatever was left, the next one writes, and sweeps.
            if what == "forget" and met[left] == new:
                with pytest.raises(DataError, match="has no user 'ann'"):
                    forget(folder)
            else:
                step(folder)
            assert events(EventLog.open(folder)) == new
            assert sorted(os.listdir(folder)) == ["events", "items", "log.json", "users"]
            assert all(len(os.listdir(folder / name)) == 1 for name in ("events", "users", "items"))
        outcomes.append(met[left])
        shutil.rmtree(folder)
        if death.seen <= at:
            break
        at += 1
    assert at > 30
    assert (outcomes[0], outcomes[-1]) == (old, new)
    assert all(one in (old, new) for one in outcomes)
    if old != new:
        assert outcomes == sorted(outcomes, key=lambda one: one == new)


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    log = EventLog.prepare(FIRST, tmp_path / "log", **OPTIONS)

    def full(*_):
        raise OSError("no space left")

    for broken in ("append", "merge"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "save", full)
            with pytest.raises(DataError, match="log cannot be written: no space left"):
                log.append(SECOND) if broken == "append" else compact_folder(log.folder)
        assert len(os.listdir(log.folder / "events")) == 1
        if broken == "append":
            assert sorted(os.listdir(log.folder)) == ["events", "items", "log.json", "users"]
            log.append(SECOND)
    assert events(EventLog.open(log.folder)) == OLD


def test_ids_of_many_segments_are_opened_one_after_another(tmp_path, monkeypatch):
    log = EventLog.prepare(FIRST, tmp_path / "log")
    for number in range(5):
        log.append(SECOND.with_columns(user_id=pl.format("u{}-{}", pl.lit(number), "user_id")))
    grown = GrownLog(log.folder, json.loads((log.folder / "log.json").read_text()))
    opening, there, most = OpenSegment.vocabulary, weakref.WeakSet[Vocabulary](), list[int]()

    def watched(segment: OpenSegment, table: str) -> Vocabulary | None:
        found = opening(segment, table)
        if found is not None:
            there.add(found)
        most.append(len(there))
        return found

    monkeypatch.setattr(OpenSegment, "vocabulary", watched)
    assert grown.rows("users", pl.Series(["u4-dan", "ann", "eve"])).tolist()[1:] == [0, -1]
    assert list(grown.known("users", ["u3-bob", "bob"]).values()) == ["bob", "u3-bob"]
    assert sum(map(len, grown.id_parts("users"))) == grown.num_users == 3 + 5 * 3
    # Each has files open: the next one is opened before the last one is let go.
    assert len(most) == 15 and max(most) <= 2


class TestForget:
    MARK = "marked-7f3a"

    def everything(self, folder: Path) -> bytes:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert files
        return b"\n".join(bytes(str(path), "utf-8") + path.read_bytes() for path in files)

    @pytest.mark.parametrize("appended", [False, True])
    def test_nothing_of_the_user_is_left(self, tmp_path, appended):
        own = {"user_id": [self.MARK] * 3, "item_id": [7, 4, 7], "timestamp": [77, 78, 79]}
        own |= {"what": ["a", f"kind {self.MARK}", "a"], "shop": [f"shop {self.MARK}", "y", None]}
        people = pl.DataFrame(
            {
                "user_id": ["ann", self.MARK, "bob"],
                "user_title": ["Ann", f"name {self.MARK}", "Bob"],
                "town": ["A", f"town {self.MARK}", "A|B"],
            }
        )
        tables = [FIRST, pl.DataFrame(own)] if appended else [pl.concat([FIRST, pl.DataFrame(own)])]
        options = OPTIONS | {"users": people, "user_kinds": ("town=category",)}
        log = EventLog.prepare(tables[0], tmp_path / "log", **options)
        for table in tables[1:]:
            log.append(table, users=people)
        log.append(SECOND)
        # Parquet may compress: what is searched for must be found before.
        assert self.MARK.encode() in self.everything(log.folder)
        before = EventLog.open(log.folder)
        assert self.MARK in before.user_vocabulary.read().to_list()

        forgotten = before.forget(self.MARK)
        assert forgotten == (self.MARK, 3)
        assert self.MARK.encode() not in self.everything(log.folder)
        after = EventLog.open(log.folder)
        assert self.MARK not in after.user_vocabulary.read().to_list()
        assert events(after) == OLD
        # What others have keeps its names; what nobody has goes, items stay.
        names = {before.fields.kinds[n - 1] for n in before.kinds if n}
        assert names - set(after.fields.kinds) == {f"kind {self.MARK}"}
        assert set(after.fields.context[0].names) == {"x", "y", "z", "w"}
        assert set(after.item_vocabulary.read().to_list()) == {4, 5, 6, 7, 8, 9}
        assert 77 not in after.timestamps and after.summary["events"] == len(OLD)
        rows = after.user_vocabulary.rows(["ann", "bob", "dan"]).tolist()
        assert [after.user_features["user_title"][row] for row in rows] == ["Ann", "Bob", ""]
        assert [after.user_features["town"][row] for row in rows] == [["A"], ["A", "B"], []]
        whole = EventLog.prepare(pl.concat([FIRST, SECOND]), kind="what", context=("shop",))
        for user in ("ann", "bob", "cid", "dan"):
            assert self.told(after, user) == self.told(whole, user)

    def told(self, log: EventLog, user: str) -> list[tuple]:
        (row,) = log.user_vocabulary.rows([user])
        part = slice(log.offsets[row], log.offsets[row + 1])
        kinds = [("?", *log.fields.kinds)[kind] for kind in log.kinds[part]]
        values = [log.fields.values(context) for context in log.context[part]]
        items = log.item_vocabulary.ids(np.asarray(log.items[part])).to_list()
        return list(zip(items, log.timestamps[part].tolist(), kinds, values, strict=True))

    def test_whoever_has_it_open_goes_on_and_a_table_does_not_come_back(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        assert log.forget("ann").events == 2
        assert events(log) == rows(FIRST)
        assert not log.append(FIRST).is_new
        assert "ann" not in EventLog.open(log.folder).user_vocabulary.read().to_list()
        assert EventLog.open(log.folder).identity != log.identity

    def test_repeats_that_only_the_user_had(self, tmp_path):
        repeated = pl.concat([FIRST, FIRST[:1].with_columns(timestamp=pl.lit(5, pl.Int64))])
        log = EventLog.prepare(repeated, tmp_path / "log")
        assert log.has_repeats
        log.forget("ann")
        assert not EventLog.open(log.folder).has_repeats

    def test_kinds_that_only_the_user_had(self, tmp_path):
        only = FIRST.with_columns(
            what=pl.when(pl.col("user_id") == "ann").then(pl.lit("own")).otherwise(None)
        )
        log = EventLog.prepare(only, tmp_path / "log", kind="what")
        log.forget("ann")
        log = EventLog.open(log.folder)
        assert log.kinds is None and log.fields.kinds == ()
        assert log.append(SECOND).is_new and EventLog.open(log.folder).num_events == 5

    def test_refusals(self, tmp_path):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        with pytest.raises(DataError, match="log has no user 'eve'"):
            log.forget("eve")
        log.forget("ann")
        log.forget("bob")
        with pytest.raises(DataError, match="log has no other user than 'cid': remove the folder"):
            log.forget("cid")
        assert EventLog.open(log.folder).num_users == 1

    def test_files_that_cannot_be_removed_are_told_of(self, tmp_path, monkeypatch):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        with pytest.raises(DataError, match="without the user 'ann', but files of before could"):
            log.forget("ann")

    def test_ids_of_the_log_are_looked_up_and_not_listed(self, tmp_path, monkeypatch):
        log = EventLog.prepare(FIRST, tmp_path / "log")
        assert log.append(SECOND).is_new

        def listed(vocabulary: Vocabulary) -> None:
            raise AssertionError("all ids are listed")

        monkeypatch.setattr(Vocabulary, "read", listed)
        found = forget_users(log.folder, ["dan", "eve", "bob", "dan"])
        assert found == [("bob", 2), ("dan", 1)]
        left = EventLog.open(log.folder)
        assert left.user_vocabulary.ids([0, 1]).to_list() == ["ann", "cid"]

    def test_integers_are_found_by_their_text(self, tmp_path):
        log = EventLog.prepare(FIRST.with_columns(user_id=pl.Series([1, 1, 2, 3])), tmp_path / "l")
        assert log.forget("2") == (2, 1)
