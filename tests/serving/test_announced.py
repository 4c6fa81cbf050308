"""Servers of a link are told of a new run, and must answer with it."""

import os
import signal
import socket

import pytest
from serving_runs import Process, write_run

from blossomrec.files import write_json
from blossomrec.run import run_version
from blossomrec.serving import Client
from blossomrec.serving.announced import announced, announced_servers, local_url
from blossomrec.updating.runs import Runs
from blossomrec.updating.servers import take_new_run


@pytest.fixture
def runs(tiny_log, tmp_path):
    """Three runs, the first of them in use; the third has no weights that a server takes."""
    found = Runs(tmp_path / "runs")
    for seed, name in enumerate(("00001", "00002", "00003")):
        write_run(found.path(name), tiny_log, seed=seed)
    (found.path("00003") / "config.json").write_text("{")
    found.use("00001")
    return found


def version(runs, name):
    return run_version(runs.path(name))


def test_a_server_of_the_link_takes_the_run_it_leads_to(runs, tmp_path):
    with Process(runs.link, tmp_path / "events.sqlite") as server, Client(server.url) as client:
        assert client.ready()["model"] == version(runs, "00001")
        (found,) = announced_servers(runs.folder)
        assert (found.pid, found.url, found.is_here) == (server.process.pid, server.url, True)
        runs.use("00002")
        (served,) = take_new_run(runs, "00002", 60)
        assert served.took and version(runs, "00002") in served.told
        assert client.ready()["model"] == version(runs, "00002")
        # One that cannot be read is refused, and the server answers with what it has.
        runs.use("00003")
        (served,) = take_new_run(runs, "00003", 1.0)
        assert not served.took
        assert f"answers with {version(runs, '00002')}, not {version(runs, '00003')}" in served.told
        runs.use("00002")
        assert all(one.took for one in take_new_run(runs, "00002", 60))
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0
    assert list((runs.folder / "servers").iterdir()) == []
    assert take_new_run(runs, "00002", 60) == []


def test_what_a_killed_server_has_left_gets_no_signal(runs, tmp_path):
    with Process(runs.link, tmp_path / "events.sqlite") as server:
        with Client(server.url) as client:
            client.ready()
        server.signal(signal.SIGKILL)
        server.wait()
    (left,) = (runs.folder / "servers").iterdir()
    # Its process id may be anybody's by now, such as ours, whom SIGHUP would end.
    write_json(left, {"host": socket.gethostname(), "pid": os.getpid(), "url": server.url})
    assert take_new_run(runs, "00001", 60) == []
    assert not left.exists()


def test_a_server_of_a_folder_is_not_announced(runs):
    with announced(runs.path("00001"), "http://127.0.0.1:1"):
        assert not (runs.folder / "servers").exists()
    with announced(runs.link, "http://127.0.0.1:1"):
        assert [one.url for one in announced_servers(runs.folder)] == ["http://127.0.0.1:1"]
    assert announced_servers(runs.folder) == []


def test_a_server_elsewhere_is_named(runs, monkeypatch):
    with announced(runs.link, "http://127.0.0.1:1"):
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        (served,) = take_new_run(runs, "00001", 60)
    assert served.took and "send it SIGHUP there" in served.told


def test_a_folder_that_cannot_be_written_is_told(runs):
    (runs.folder / "servers").write_text("")
    with (
        pytest.warns(UserWarning, match="are not told to this server"),
        announced(runs.link, "http://127.0.0.1:1"),
    ):
        pass


def test_addresses_are_those_for_this_machine():
    assert local_url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
    assert local_url("10.0.0.5", 8000) == "http://10.0.0.5:8000"
    assert local_url("::", 8000) == "http://[::1]:8000"
