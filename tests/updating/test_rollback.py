"""The way back to the run before, by one command, also while an update is at work."""

from __future__ import annotations

import json

import pytest

from blossomrec.cli import main
from blossomrec.errors import RunError
from blossomrec.updating import loop, roll_back
from blossomrec.updating.runs import Runs
from command_line import refuse


def back(world, **options):
    return roll_back(world.runs, tell=lambda line: None, **options)


def test_the_way_back_goes_one_run_after_another(world):
    for day in (1, 2):
        world.a_day(day)
        assert world.update(tolerance=1.0)["taken"]
    assert world.current() == "00003"
    line = back(world)
    assert (line["rolled_back"], line["used"]) == ("00003", "00002")
    assert world.current() == "00002" and world.history()[-1] == line
    assert back(world)["used"] == world.current() == "00001"
    with pytest.raises(RunError, match="no run was in use before 00001"):
        back(world)


def test_the_next_update_begins_with_the_run_that_is_back(world):
    world.a_day()
    world.update(tolerance=1.0)
    back(world)
    assert world.update()["why"] == "nothing is new"
    world.a_day(2)
    line = world.update(tolerance=1.0)
    assert (line["run"], line["from"]) == ("00003", "00001")
    # Both ways lead to what was in use before.
    assert back(world)["used"] == "00001"


def test_what_trains_from_a_run_that_was_left_is_not_taken(world, monkeypatch):
    world.a_day()
    world.update(tolerance=1.0)
    world.a_day(2)
    judge = loop.judge

    def meanwhile(*given, **options):
        assert back(world)["used"] == "00001"
        return judge(*given, **options)

    monkeypatch.setattr(loop, "judge", meanwhile)
    line = world.update(tolerance=1.0)
    assert (line["run"], line["taken"]) == ("00003", False)
    assert line["why"] == "meanwhile 00001 is in use"
    assert world.current() == "00001"


def test_a_training_from_a_run_that_was_left_is_dropped(world, monkeypatch):
    world.a_day()
    world.update(tolerance=1.0)
    world.a_day(2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "judge", _kill)
        with pytest.raises(KeyboardInterrupt):
            world.update(tolerance=1.0)
    back(world)
    world.a_day(3)
    line = world.update(tolerance=1.0)
    assert (line["run"], line["from"], line["taken"]) == ("00003", "00001", True)
    assert sorted(one.get("events") for one in line["taken_in"].values()) == [104, 104]
    assert world.logged() == world.stored()


def test_an_update_that_was_killed_after_the_swap_is_not_done_again(world, monkeypatch):
    world.a_day()
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "record", _kill)
        with pytest.raises(KeyboardInterrupt):
            world.update(tolerance=1.0)
    assert world.current() == "00002"
    assert back(world)["rolled_back"] == "00002"
    line = world.update(tolerance=1.0)
    assert (line["run"], line["taken"]) == ("00002", True)
    assert world.current() == "00001"
    assert [one.get("run") or one["rolled_back"] for one in world.history()] == [
        "00001",
        "00002",
        "00002",
    ]


def _kill(*_, **__):
    raise KeyboardInterrupt


def test_a_run_that_is_gone_is_not_gone_back_to(world, runs):
    world.a_day()
    world.update(tolerance=1.0)
    (runs.path("00001") / "model.safetensors").unlink()
    with pytest.raises(RunError, match="00001, which was in use before, is not there any more"):
        back(world)
    assert world.current() == "00002"


def test_the_command_says_what_it_did(world, capsys, tmp_path):
    world.a_day()
    store = ["--store", str(world.path)]
    assert main(["update", str(world.log), str(world.runs), *store, "--tolerance", "1"]) == 0
    shown = capsys.readouterr().out
    assert "104 new events from the store" in shown
    assert "00002 taken: ndcg@10" in shown
    assert main(["rollback", str(world.runs)]) == 0
    assert "current leads to 00001 again, not to 00002" in capsys.readouterr().out
    refuse(capsys, "rollback", world.runs, words=["no run was in use before 00001"])
    refuse(capsys, "rollback", tmp_path / "none", words=["none is no folder of runs"])


def test_options_of_the_command_are_those_of_the_run_in_use(world, capsys, tmp_path):
    world.a_day()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"training": {"weight_decay": 0.5}}))
    flags = ["--store", world.path, "--config", file, "--quiet", "--every", "often"]
    words = ["every is 'often'"]
    refuse(capsys, "update", world.log, world.runs, *flags, words=words)
    assert main(["update", str(world.log), str(world.runs), *map(str, flags[:-2])]) == 0
    assert capsys.readouterr().out == ""
    config = json.loads((world.runs / "00002/config.json").read_text())["config"]
    assert config["training"]["weight_decay"] == 0.5
    assert config["training"]["tokens_per_batch"] == 256 and config["model"]["hidden_size"] == 16
