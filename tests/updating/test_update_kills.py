"""Killed anywhere, an update leaves each event once, and a whole run in use; the next goes on.

More points than every run of the tests needs::

    BLOSSOMREC_KILLS=100 python -m pytest tests/updating/test_update_kills.py
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time

import polars as pl
import pytest
from daily_world import World

from blossomrec import files
from death_on_disk import Death, KilledError
from forked_commands import ForkedCommand

KILLS = int(os.environ.get("BLOSSOMREC_KILLS", "2"))
MORE = ((os, "symlink"), (shutil, "copyfile"), (pl.DataFrame, "write_parquet"))


def a_day(world: World) -> None:
    """New events, and users who were deleted, one of whom is back."""
    world.a_day()
    world.delete("user 3")
    world.delete("user 4")
    world.add("user 4", [100, 101, 102], day=2)


def check_whole(world: World) -> None:
    """What holds at any moment."""
    name = world.current()
    assert name in ("00001", "00002")
    assert max(world.logged().values()) == 1


def check_done(world: World) -> None:
    """What holds in the end."""
    assert world.logged() == world.stored()
    line = world.history()[1]
    assert line["run"] == "00002" and line["taken"] and world.current() == "00002"
    # Further updates have found nothing.
    assert {one.get("why") for one in world.history()[2:]} <= {"nothing is new"}
    assert [path.name for path in (world.runs / "store").iterdir()] == ["batch-000002"]
    assert not list(world.runs.rglob("events.parquet"))


@pytest.fixture(scope="module")
def morning(begun, tmp_path_factory):
    """What an update has to do, and how many steps on the disk it takes. Read only."""
    world = begun.copy(tmp_path_factory.mktemp("morning") / "world")
    a_day(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        death = Death(patch, 10**9, MORE)
        done = world.copy(tmp_path_factory.mktemp("done") / "world")
        done.update(tolerance=1.0)
    check_done(done)
    assert death.seen > 100
    return world, death.seen


@pytest.mark.parametrize("kill", range(3 * KILLS))
def test_killed_at_any_step_on_the_disk(morning, tmp_path, monkeypatch, kill):
    (start, steps), moments = morning, random.Random(kill)
    world = start.copy(tmp_path / "world")
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    # Most steps are of the checkpoints: half of the kills come just before or after the training.
    near = abs(moments.choice([0, steps]) + moments.randint(-40, 40))
    at = moments.randrange(steps) if kill % 2 else near
    for place in (at, moments.randrange(steps)):
        with pytest.MonkeyPatch.context() as dying:
            Death(dying, place, MORE)
            with contextlib.suppress(KilledError):
                world.update(tolerance=1.0)
        # As the end of a process does it, locks go.
        files._close_all()
        check_whole(world)
    if (world.runs / "update.json").exists() or len(world.history()) == 1:
        world.update(tolerance=1.0)
    check_done(world)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_by_the_system(morning, tmp_path, kill):
    start, _ = morning
    world, moments = start.copy(tmp_path / "world"), random.Random(kill)
    flags = ["--store", str(world.path), "--tolerance", "1", "--training.epochs", "20"]
    flags += ["--training.patience", "20"]
    command = ["update", world.log, world.runs, *flags]
    for _ in range(2):
        process = ForkedCommand(command)
        while not (world.runs / "update.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        check_whole(world)
    if (world.runs / "update.json").exists() or len(world.history()) == 1:
        ended = ForkedCommand(command).wait(300)
        assert ended.code == 0, ended
    check_done(world)
