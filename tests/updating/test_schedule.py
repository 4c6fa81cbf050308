"""Updates every so often: when the next one begins, what is tried again, how it ends."""

from __future__ import annotations

import json
import signal
import time

import pytest
from daily_world import World

from blossomrec.errors import RunError
from blossomrec.updating import schedule
from blossomrec.updating.runs import Runs
from blossomrec.updating.schedule import Ended, repeat
from forked_commands import ForkedCommand


class Clock:
    """A clock that goes on while it is waited for, until it has been so often."""

    def __init__(self, monkeypatch, waits):
        self.now, self.waits, self.waited = 1_800_000_000.0, waits, []
        monkeypatch.setattr(schedule, "_sleep", self.sleep)
        monkeypatch.setattr(schedule.time, "time", lambda: self.now)

    def sleep(self, seconds, tell):
        if seconds > 0:
            self.waited.append(seconds)
            self.now += seconds
        if len(self.waited) >= self.waits:
            raise Ended


def test_updates_begin_at_equal_distances(tmp_path, monkeypatch):
    runs, clock, began = Runs(tmp_path), Clock(monkeypatch, 3), []
    durations = iter([10.0, 250.0, 20.0, 0.0])

    def once():
        began.append(clock.now)
        runs.record({"started": clock.now})
        clock.now += next(durations)

    repeat(runs, 100.0, once, lambda line: None)
    # The second one lasted longer: the third begins at once.
    assert [one - began[0] for one in began] == [0.0, 100.0, 350.0, 450.0]
    # After a new start the last one counts, a way back does not.
    runs.record({"started": clock.now, "rolled_back": "00002"})
    clock.now, clock.waited, clock.waits, durations = began[-1] + 40, [], 2, iter([0.0])
    repeat(runs, 100.0, once, lambda line: None)
    assert began[-1] - began[-2] == 100


def test_what_was_broken_off_goes_on_at_once(tmp_path, monkeypatch):
    runs, clock, began = Runs(tmp_path), Clock(monkeypatch, 1), []
    runs.record({"started": clock.now})
    runs.write_pending({"started": clock.now, "taken_in": {}})

    def once():
        began.append(clock.now)
        runs.clear_pending()

    repeat(runs, 100.0, once, lambda line: None)
    assert began == [1_800_000_000.0]


@pytest.mark.parametrize("error", [RunError("so"), OSError("so")])
def test_what_goes_wrong_is_told_and_tried_again(tmp_path, monkeypatch, error):
    runs, clock, told = Runs(tmp_path), Clock(monkeypatch, 2), []

    def once():
        raise error

    repeat(runs, 86_400.0, once, told.append)
    assert clock.waited == [schedule.AGAIN_SECONDS] * 2
    assert told[0] == "the update could not be carried out: so"


@pytest.mark.slow
def test_a_signal_ends_it_cleanly_anywhere(world):
    def start():
        flags = ["--store", world.path, "--every", "1d", "--tolerance", "1"]
        return ForkedCommand(["update", world.log, world.runs, *flags])

    # While it waits: the last update was a moment ago.
    world.a_day()
    process = start()
    assert process.line().startswith("the next update is in 86,")
    process.send_signal(signal.SIGTERM)
    ended = process.wait(60)
    assert (ended.code, ended.stdout) == (0, "ended\n"), ended
    # While it trains.
    (line,) = world.history()
    (world.runs / "updates.jsonl").write_text(json.dumps(line | {"started": 1.0}))
    process = start()
    while not process.line().startswith("training "):
        pass
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    ended = process.wait(60)
    assert ended.code == 0, ended
    assert "goes on with it" in ended.stdout or "ended" in ended.stdout
    assert world.update(tolerance=1.0)["run"] == "00002"
    assert world.logged() == world.stored()


def test_days_go_by(tmp_path, monkeypatch, one_thread):
    """Each begins where the last one ended."""
    world = World(tmp_path).begin()
    clock = Clock(monkeypatch, 4)
    days = iter(range(1, 5))

    def once():
        world.update(tolerance=1.0, keep=2)
        world.a_day(next(days), users=5)

    repeat(Runs(world.runs), 86_400.0, once, lambda line: None)
    assert [line["run"] for line in world.history()] == ["00001", "00002", "00003", "00004"]
    assert clock.waited == [86_400.0] * 4
    assert sorted(path.name for path in world.runs.glob("0*")) == ["00003", "00004"]
