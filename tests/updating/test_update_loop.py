"""One update after another: events in, a run trained, judged, in use, and what is kept."""

from __future__ import annotations

import itertools
import json
import signal
import sqlite3
from dataclasses import replace

import polars as pl
import pytest
from daily_world import CONFIG, World, walks

from blossomrec.config import EvaluationConfig, with_options
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.files import locked
from blossomrec.run.description import read_run_config
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.training import TrainingInterrupted, trainer
from blossomrec.updating import DailyOptions, loop
from blossomrec.updating.gate import Verdict
from blossomrec.updating.options import seconds_of


def test_a_day_brings_events_and_a_run_that_is_used(world):
    world.a_day()
    line = world.update(tolerance=1.0)
    assert world.logged() == world.stored()
    assert line["taken"] and (line["run"], line["from"]) == ("00002", "00001")
    assert world.current() == "00002"
    assert [one["events"] for one in line["taken_in"].values()] == [104]
    assert line["metrics"]["users"] == 21 and line["seconds"] >= line["training_seconds"]
    info = read_run_config(world.runs / "00002")
    assert info.ancestor is not None and info.ancestor["items_new"] == 1
    assert info.config.training.minutes == 20
    assert world.history()[-1] == json.loads(json.dumps(line))
    assert not (world.runs / "update.json").exists()


def test_without_anything_new_nothing_is_trained(world):
    line = world.update()
    assert (line["taken"], line["why"]) == (False, "nothing is new") and "run" not in line
    assert world.current() == "00001" and not (world.runs / "00002").exists()


def test_a_worse_run_is_refused_and_not_trained_again_without_news(tmp_path, one_thread):
    # Without validation the last weights are published, whatever they are.
    by_time = EvaluationConfig(split="global-time", valid_share=0.0, test_share=0.15)
    config = replace(CONFIG, evaluation=by_time)
    world = World(tmp_path).begin()
    world.update(with_options(config, {"epochs": 10}))
    world.a_day()
    # Steps so large that nothing of what was learned is left.
    line = world.update(with_options(config, {"learning_rate": 3.0, "ema_decay": 0.0}))
    assert (line["taken"], line["run"]) == (False, "00002")
    assert "worse by more than 1.0%" in line["why"]
    assert line["metrics"]["new"] < 0.9 * line["metrics"]["used"]
    assert world.current() == "00001" and (world.runs / "00002/model.safetensors").is_file()
    assert world.logged() == world.stored()
    assert world.update()["why"] == "nothing is new"
    # The next one begins with the one in use, not with the one that was refused.
    world.a_day(2)
    line = world.update(tolerance=1.0)
    assert (line["run"], line["from"], line["taken"]) == ("00003", "00001", True)


def test_tables_are_taken_beside_a_store_or_without_one(world, tmp_path):
    day = walks(seed=4).with_columns(pl.col("timestamp") + 86_400)
    folder = tmp_path / "tables"
    folder.mkdir()
    day.head(100).write_parquet(folder / "a.parquet")
    line = world.update(store=None, events=[folder])
    assert line["run"] == "00002"
    assert [one["events"] for one in line["taken_in"].values()] == [100]
    # A folder in which there is one table more.
    day.tail(50).write_parquet(folder / "b.parquet")
    world.add("user 1", [120])
    line = world.update(events=[folder])
    assert sorted(one["events"] for one in line["taken_in"].values()) == [1, 50]
    both = [(one["user_id"], str(one["item_id"]), one["timestamp"]) for one in day.to_dicts()]
    expected = world.stored()
    expected.update([*both[:100], *both[-50:]])
    assert world.logged() == expected


def test_a_table_of_a_day_without_events_keeps_no_other_away(world, tmp_path):
    days = tmp_path / "days"
    days.mkdir()
    walks(range(40, 43)).head(0).write_csv(days / "1.csv")
    walks(range(40, 43)).write_csv(days / "2.csv")
    line = world.update(store=None, events=[days], tolerance=1.0)
    assert [one["table"] for one in line["taken_in"].values()] == [str(days / "2.csv")]


def test_a_catalogue_comes_with_the_events(tmp_path, one_thread):
    table = pl.DataFrame({"item_id": range(100, 150), "genre": ["a", "b"] * 25})
    world = World(tmp_path).begin(items=table)
    world.update()
    grown = pl.DataFrame({"item_id": [100, 7_777], "genre": ["c", "a"]})
    grown.write_parquet(tmp_path / "items.parquet")
    world.add("user 1", [100, 101])
    world.update(items=tmp_path / "items.parquet")
    log = EventLog.open(world.log)
    assert log.num_items == 51 and log.item_vocabulary.rows([7_777])[0] == 50
    assert log.item_features is not None
    assert list(log.item_features["genre"].names) == ["a", "b", "c"]


def test_a_catalogue_comes_without_events(tmp_path, one_thread):
    table = pl.DataFrame({"item_id": range(100, 150), "genre": ["a", "b"] * 25})
    world = World(tmp_path).begin(items=table)
    world.update()
    path, before = tmp_path / "items.parquet", world.logged()
    pl.DataFrame({"item_id": [100, 7_777], "genre": ["c", "a"]}).write_parquet(path)
    line = world.update(items=path)
    assert list(line["taken_in"].values()) == [{"items": 1, "table": str(path)}]
    assert not line["taken"] and "nothing to bring up to date" in line["why"]
    log = EventLog.open(world.log)
    assert log.item_features is not None and log.num_items == 51
    (row,) = log.item_vocabulary.rows([100])
    assert log.item_features["genre"][row] == ["c"]
    assert not (world.runs / "00002").exists()
    assert world.logged() == before and world.current() == "00001"
    # What it says is known.
    line = world.update(items=path)
    assert (line["why"], line["taken_in"]) == ("nothing is new", {})


def test_files_of_several_kinds_are_read_each_by_its_own(world, tmp_path):
    day = walks(range(40, 44))
    folder = tmp_path / "tables"
    (folder / "more").mkdir(parents=True)
    parts = [day.filter(user_id=f"user {user}") for user in range(40, 44)]
    parts[0].write_csv(folder / "a.csv")
    parts[1].write_parquet(folder / "b.parquet")
    parts[2].write_csv(folder / "more/c.tsv", separator="\t")
    (folder / "README").write_text("no table")
    line = world.update(store=None, events=[folder], tolerance=1.0)
    told = [(one["table"], one["events"]) for one in line["taken_in"].values()]
    files = (folder / name for name in ("a.csv", "b.parquet", "more/c.tsv"))
    assert told == [(str(file), len(part)) for file, part in zip(files, parts, strict=False)]
    before = world.logged()
    parts[3].write_csv(folder / "d.txt")
    with pytest.raises(DataError, match=r"d\.txt ends in '\.txt': known are \.parquet"):
        world.update(store=None, events=[folder / "*.*"])
    assert world.logged() == before


def test_the_last_runs_are_kept_and_those_in_use_and_before(world, monkeypatch):
    decisions = iter([True, False, False, False, True])
    monkeypatch.setattr(loop, "judge", lambda *_, **__: _verdict(next(decisions)))
    kept = []
    for day in range(1, 6):
        world.add("user 1", [100 + day, 101 + day], day)
        world.update(keep=2)
        kept.append([path.name for path in sorted(world.runs.glob("0*"))])
    # 2 is in use, and was 1 before; then 6, and before that 2.
    assert kept == [
        ["00001", "00002"],
        ["00001", "00002", "00003"],
        ["00001", "00002", "00003", "00004"],
        ["00001", "00002", "00004", "00005"],
        ["00002", "00005", "00006"],
    ]
    assert world.current() == "00006"
    # Each refused run was begun from the one in use.
    assert [line["from"] for line in world.history()[1:]] == ["00001", *["00002"] * 4]


def _verdict(taken):
    return Verdict(taken, "so it was decided", {})


def test_training_that_was_stopped_goes_on_before_anything_is_taken(world, monkeypatch):
    world.a_day()
    steps = trainer.device_steps
    long = with_options(CONFIG, {"tokens_per_batch": 50, "epochs": 5})

    taken = itertools.count()

    def stopped(*given):
        for step in steps(*given):
            if (world.runs / "00002/log.jsonl").stat().st_size and next(taken) == 2:
                signal.raise_signal(signal.SIGTERM)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "device_steps", stopped)
        with pytest.raises(TrainingInterrupted):
            world.update(long)
    lines = (world.runs / "00002/log.jsonl").read_text()
    assert lines
    done = json.loads((world.runs / "update.json").read_text())
    assert done["run"] == "00002" and (world.runs / "00002/checkpoints").is_dir()
    before = world.logged()
    world.a_day(2)
    epochs = with_options(long, {"epochs": 3})
    line = world.update(epochs)
    assert (world.runs / "00002/log.jsonl").read_text().startswith(lines)
    assert line["run"] == "00002" and line["started"] == done["started"]
    assert world.logged() == before
    assert not list((world.runs).glob("00003"))
    line = world.update(epochs, tolerance=1.0)
    assert line["run"] == "00003" and world.logged() == world.stored()


def test_a_run_with_the_weights_of_the_one_in_use_is_not_taken(world):
    world.add("user 3", [100, 101])
    line = world.update(with_options(CONFIG, {"learning_rate": 0.0}))
    assert not line["taken"] and line["why"] == (
        "training found nothing better than the run in use"
    )
    # What it did not learn from is new to the next one.
    world.add("user 4", [102])
    line = world.update(tolerance=1.0)
    assert (line["run"], line["from"], line["taken"]) == ("00003", "00001", True)


def test_wrong_options_leave_what_can_be_resumed(world, monkeypatch):
    world.a_day()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "judge", _kill)
        with pytest.raises(KeyboardInterrupt):
            world.update()
    files = {path: path.read_bytes() for path in (world.runs / "00002").rglob("*.safetensors")}
    with pytest.raises(ConfigError, match="hidden_size is 24"):
        world.update(with_options(CONFIG, {"hidden_size": 24}))
    assert files and all(path.read_bytes() == before for path, before in files.items())
    assert not list(world.runs.glob(".0*"))
    assert world.update(tolerance=1.0)["run"] == "00002"


def test_what_cannot_be_resumed_begins_again(world, monkeypatch):
    world.a_day()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "judge", _kill)
        with pytest.raises(KeyboardInterrupt):
            world.update()
    # With other options, and with a log that has grown meanwhile.
    line = world.update(with_options(CONFIG, {"learning_rate": 1e-3}))
    assert line["run"] == "00002"
    assert read_run_config(world.runs / "00002").config.training.learning_rate == 1e-3
    world.a_day(2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "judge", _kill)
        with pytest.raises(KeyboardInterrupt):
            world.update()
    EventLog.open(world.log).append(walks(seed=9).tail(20))
    line = world.update()
    assert line["run"] == "00003"
    assert read_run_config(world.runs / "00003").log == EventLog.open(world.log).identity


def _kill(*_, **__):
    raise KeyboardInterrupt


def test_a_run_that_cannot_be_trained_stops_nothing(world, monkeypatch):
    # A new user of one event leaves nothing new to train on.
    world.add("one event", [100])
    line = world.update()
    assert not line["taken"] and "nothing to bring up to date" in line["why"]
    assert world.current() == "00001"
    assert world.update()["why"] == "nothing is new"
    world.a_day()
    assert world.update(tolerance=1.0)["taken"]


def test_a_store_that_cannot_be_read_is_named(world, monkeypatch):
    def away(*_):
        raise sqlite3.OperationalError("it is away")

    world.a_day()
    with monkeypatch.context() as patch:
        patch.setattr(SQLiteStore, "members", away)
        with pytest.raises(DataError, match=r"events\.sqlite cannot be read: it is away"):
            world.update()
    assert world.update(tolerance=1.0)["taken"]
    assert world.logged() == world.stored()


def test_two_updates_do_not_run_at_once(world):
    world.a_day()
    with locked(world.runs), pytest.raises(RunError, match="is being written by process"):
        world.update()
    assert world.logged() != world.stored()


def test_damaged_files_are_named(world, runs):
    (world.runs / "update.json").write_text("{")
    with pytest.raises(RunError, match=r"update\.json is damaged"):
        world.update()
    (world.runs / "update.json").unlink()
    for line in ("[]", '{"run": "00001"}'):
        (world.runs / "updates.jsonl").write_text(f"{line}\n")
        with pytest.raises(RunError, match=r"updates\.jsonl is damaged"):
            world.update()
    runs.link.unlink()
    runs.link.mkdir()
    with pytest.raises(RunError, match="current is no link"):
        runs.current()
    runs.link.rmdir()
    runs.link.symlink_to("../elsewhere/run")
    with pytest.raises(RunError, match="which is no run of"):
        runs.current()


def test_wrong_input_is_named_and_nothing_is_written(world, tmp_path):
    before = sorted(world.runs.rglob("*"))
    with pytest.raises(ConfigError, match=r"store is .*none\.sqlite': there is no such file"):
        world.update(store=str(tmp_path / "none.sqlite"))
    assert not (tmp_path / "none.sqlite").exists()
    with pytest.raises(ConfigError, match="there is no such file"):
        world.update(items=tmp_path / "none.parquet")
    walks().write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ConfigError, match="has no table of items to add to"):
        world.update(items=tmp_path / "items.parquet")
    for wrong in ({"keep": 0}, {"tolerance": 2.0}, {"minutes": -1.0}, {"every": "often"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            world.update(**wrong)
    with pytest.raises(ConfigError, match="restored is for one update"):
        world.update(every="1d", restored=True)
    with pytest.raises(DataError, match="does not exist"):
        world.update(events=[tmp_path / "none.parquet"])
    left = {world.runs / "update.json"}
    assert set(world.runs.rglob("*")) - set(before) <= left
    assert [seconds_of(one) for one in ("90s", "5m", "2h", "1d")] == [90, 300, 7_200, 86_400]


@pytest.mark.parametrize("damage", [None, "log.json"])
def test_without_a_log_nothing_is_made(tmp_path, damage):
    world = World(tmp_path)
    if damage:
        world.log.mkdir()
        (world.log / damage).write_text("{")
    with pytest.raises(DataError, match=r"log\.json"):
        world.update(store=None)
    assert not world.runs.exists()


def test_options_that_are_not_given_are_those_of_the_run_in_use(world):
    world.a_day()
    world.update()
    ours, theirs = (read_run_config(world.runs / name).config for name in ("00002", "00001"))
    assert ours.model == theirs.model
    assert ours.training.learning_rate == theirs.training.learning_rate
    assert DailyOptions().minutes == ours.training.minutes != theirs.training.minutes
