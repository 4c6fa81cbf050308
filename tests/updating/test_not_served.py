"""A run that a server did not take is left, and offered again, until one is in use."""

from __future__ import annotations

import pytest
from daily_world import CONFIG

from blossomrec.config import with_options
from blossomrec.updating import loop, roll_back
from blossomrec.updating.runs import Runs
from blossomrec.updating.servers import Served


class Server:
    """Takes runs or does not; ``asked`` is those that it was told of."""

    def __init__(self, monkeypatch):
        self.takes, self.asked = False, []
        monkeypatch.setattr(loop, "take_new_run", self.take)

    def take(self, runs, name, wait):
        self.asked.append(name)
        took = self.takes or name == "00001"
        return [Served(took, f"it answers with {name if took else 'the old run'}")]


@pytest.fixture
def server(monkeypatch):
    return Server(monkeypatch)


@pytest.fixture
def left(world, server):
    """After an update whose run was not served."""
    world.a_day()
    line = world.update(tolerance=1.0)
    assert (line["run"], line["taken"]) == ("00002", False)
    assert world.current() == "00001" and server.asked == ["00002", "00001"]
    return world


def test_it_is_offered_again_without_new_events(left, server):
    line = left.update()
    assert (line["run"], line["taken"]) == ("00002", False)
    assert line["why"] == "a server did not take it: it answers with the old run"
    assert left.current() == "00001"
    server.takes = True
    line = left.update()
    assert (line["run"], line["from"], line["taken"]) == ("00002", "00001", True)
    assert line["why"] == "offered again: a server did not take it: it answers with the old run"
    assert left.current() == "00002" == server.asked[-1] and "training_seconds" not in line
    assert left.update()["why"] == "nothing is new"
    assert roll_back(left.runs, tell=lambda line: None)["used"] == "00001"
    # Somebody has left it, not a server.
    assert left.update()["why"] == "nothing is new"
    assert left.current() == "00001"


def test_with_new_events_there_is_a_newer_run(left, server):
    server.takes = True
    left.a_day(2)
    line = left.update(tolerance=1.0)
    assert (line["run"], line["from"], line["taken"]) == ("00003", "00001", True)
    assert left.update()["why"] == "nothing is new"


def test_after_a_newer_run_that_is_refused_it_is_offered(left, server):
    server.takes = True
    left.add("user 3", [100, 101], day=2)
    line = left.update(with_options(CONFIG, {"learning_rate": 0.0}))
    assert (line["run"], line["taken"]) == ("00003", False)
    assert left.update()["run"] == "00002" == left.current()


def test_a_run_that_was_removed_is_not_offered(left, server):
    (left.runs / "00002/model.safetensors").unlink()
    assert left.update()["why"] == "nothing is new"
    assert left.current() == "00001"


@pytest.mark.parametrize("at", ["write_pending", "use", "record", "prune"])
def test_killed_while_it_is_offered_the_next_one_goes_on(left, server, monkeypatch, at):
    server.takes = True

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Runs, at, kill)
        with pytest.raises(KeyboardInterrupt):
            left.update()
    assert left.update()["run"] == "00002" == left.current()
    assert left.update()["why"] == "nothing is new"
    assert [one.get("run") for one in left.history()] == ["00001", "00002", None, "00002", None]
