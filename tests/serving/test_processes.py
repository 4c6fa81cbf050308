"""Servers in processes of their own: start, signals, kill -9, the client."""

import asyncio
import errno
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import uvicorn
from loads import KILLS, TAKEN, Load, metrics, stored_keys, until
from places import metric
from serving_runs import Process, write_run

from blossomrec.config import ServingConfig
from blossomrec.errors import RunError
from blossomrec.serving import Client, ServerError
from blossomrec.serving.http import server as http_server
from blossomrec.serving.http.connections import ConnectionLimits
from blossomrec.serving.http.server import _Server
from blossomrec.serving.metrics import Metrics
from command_line import refuse

SENDERS = 4
REFUSED = 'blossomrec_reloads_total{outcome="refused"}'


def test_no_acknowledged_event_is_lost_by_kill_9(run, item_ids, tmp_path):
    path, acknowledged, sent = tmp_path / "events.sqlite", [], []
    moments = random.Random(5)
    for round_ in range(KILLS):
        with Process(run, path) as server:
            loads = [Load(server.url, number, item_ids, round_) for number in range(SENDERS)]
            for load in loads:
                load.start()
            until(loads[0].acknowledged.__len__)
            time.sleep(moments.uniform(0, 0.5))
            server.signal(signal.SIGKILL)
            for load in loads:
                load.join(30)
        for load in loads:
            assert load.error is not None and load.error.status == 0, load.error
            acknowledged += load.acknowledged
            sent += load.sent
        stored = stored_keys(path)
        assert len(stored) == len(set(stored))
        assert set(acknowledged) <= set(stored) <= set(sent)
    # What is sent again, because no answer came, is stored once.
    with Process(run, path) as server, Client(server.url) as client:
        user, key = acknowledged[-1]
        before = client.user(user)["length"]
        with pytest.raises(ServerError) as refused:
            # One of the two is not what was stored under the key.
            client.append(user, [{"item": item, "key": key} for item in item_ids[:2]])
        assert refused.value.code == "key_reused"
        assert client.user(user)["length"] == before
        assert len(client.recommend(user, 4, filter_viewed=False)) == 4


def test_signals_under_load(tiny_log, item_ids, tmp_path):
    """SIGHUP takes a new model, SIGTERM ends: no request fails that has been accepted."""
    run, path = write_run(tmp_path / "run", tiny_log), tmp_path / "events.sqlite"
    with Process(run, path) as server:
        loads = [Load(server.url, number, item_ids, "x") for number in range(SENDERS)]
        for load in loads:
            load.start()
        with Client(server.url) as client:
            versions = [client.ready()["model"]]
            write_run(run, tiny_log, seed=1)
            server.signal(signal.SIGHUP)
            until(lambda: client.ready()["model"] != versions[0])
            versions.append(client.ready()["model"])
            # Counted once all is done, which is after the new model has begun to answer.
            until(lambda: metric(metrics(server.url), TAKEN) == 1)
            (run / "model.safetensors").write_bytes(b"junk")
            server.signal(signal.SIGHUP)
            until(lambda: metric(metrics(server.url), REFUSED) == 1)
            assert client.ready()["model"] == versions[1]
        assert all(load.is_alive() for load in loads)
        server.signal(signal.SIGTERM)
        code, shown = server.wait()
        for load in loads:
            load.join(30)
    assert code == 0
    assert "the model stays as it is" in shown and "damaged" in shown
    assert f"serving version {versions[1]}" in shown
    assert "Traceback" not in shown
    acknowledged = [pair for load in loads for pair in load.acknowledged]
    stored = stored_keys(path)
    # A client that found the door closed sent nothing: all that came in was answered.
    assert set(acknowledged) <= set(stored)
    assert len(stored) - len(acknowledged) <= 3 * SENDERS
    assert not Path(f"{path}-wal").exists()


def test_a_signal_while_a_model_is_read_is_not_lost(caplog):
    class Service:
        taken = 0

        async def reload(self):
            await asyncio.sleep(0)
            self.taken += 1
            if self.taken == 1:
                raise RuntimeError("no memory")

    async def signals():
        service = Service()
        server = _Server(uvicorn.Config("none"), service, ConnectionLimits(1, 1.0, Metrics()))
        for _ in range(2):
            server._hang_up()
            await asyncio.sleep(0)
        await server._reload
        server._hang_up()
        await server._reload
        return service.taken

    assert asyncio.run(signals()) == 3
    assert caplog.messages == ["the model stays as it is: no memory"]


def test_the_client(run, item_ids, tmp_path):
    token = "a secret with many characters"
    with Process(run, tmp_path / "e.sqlite", "--step", "5", BLOSSOMREC_TOKEN=token) as server:
        with Client(server.url, token=token) as client:
            assert client.ready()["max_len"] == 20
            assert client.append("a/b%2F", item_ids[:3])["stored"] == 3
            events = [{"item": item_ids[3], "key": "k"}, {"item": item_ids[4]}]
            assert client.append("a/b%2F", events)["length"] == 5
            assert client.append("a/b%2F", events[:1])["repeated"] == 1
            (listed,) = client.users()
            assert (listed["user_id"], listed["length"]) == ("a/b%2F", 5)
            assert abs(listed["timestamp"] - time.time()) < 3_600
            user = client.user("a/b%2F", last=2)
            assert (user["user_id"], user["length"], len(user["events"])) == ("a/b%2F", 5, 2)
            found = client.recommend("a/b%2F", 4)
            assert found == client.recommend_history(item_ids[:5], 4)
            assert [one["rank"] for one in found] == [1, 2, 3, 4]
            off = found[0]["item"]
            assert client.switch([off]) == [off]
            assert off not in [one["item"] for one in client.recommend("a/b%2F", 80)]
            assert client.switch(on=[off]) == []
            assert len(client.similar(item_ids[:2], 3)[1]["similar"]) == 3
            assert client.delete("a/b%2F") == 5
            assert client.delete("a/b%2F") == 0
            with pytest.raises(ServerError, match="no events of user") as refused:
                client.user("a/b%2F")
            error = refused.value
            assert (error.status, error.code, error.value) == (404, "unknown_user", "a/b%2F")
        with pytest.raises(ServerError, match="Authorization") as refused:
            Client(server.url).user("a")
        assert refused.value.status == 401
    with pytest.raises(ServerError, match="no answer"):
        Client(server.url, timeout=2).ready()


@pytest.mark.parametrize(
    "flags, environment, words",
    [
        (["--host", "0.0.0.0"], {}, ["host is '0.0.0.0'", "BLOSSOMREC_TOKEN"]),
        (["--host", "0.0.0.0"], {"BLOSSOMREC_TOKEN": "short"}, ["5 characters"]),
        (["--step", "21"], {}, ["step is 21", "max_len, 20"]),
        (["--store", "none/e.sqlite"], {}, ["none/e.sqlite"]),
        (["--port", "70000"], {}, ["port is 70000"]),
        (["--port", "{used}"], {}, ["port {used}", "in use"]),
        (["--host", "no.such.host.invalid"], {"BLOSSOMREC_TOKEN": "x" * 16}, ["no.such.host"]),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    run, tmp_path, capsys, monkeypatch, flags, environment, words
):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        used = str(taken.getsockname()[1])
        flags, words = ([one.replace("{used}", used) for one in part] for part in (flags, words))
        refuse(capsys, "serve", run, *flags, words=words)


def test_the_client_says_whose_request_it_is():
    """For a proxy that sends a user always to the same server."""
    heard = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer():
            connection, _ = listening.accept()
            with connection, connection.makefile("rwb") as stream:
                for _ in range(2):
                    lines = iter(stream.readline, b"\r\n")
                    heard.append({line.partition(b":")[0].lower(): line for line in lines})
                    stream.read(int(heard[-1].get(b"content-length", b": 0").split()[1]))
                    stream.write(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"items":[]}')
                    stream.flush()

        thread = threading.Thread(target=answer)
        thread.start()
        with Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
            client.recommend("ä b")
            client.recommend_history([1])
        thread.join(20)
    assert heard[0][b"x-user"] == b"X-User: %C3%A4%20b\r\n"
    assert b"x-user" not in heard[1]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_a_proxy_could_not_pass_on_is_sent_again(status):
    """Where that is safe: events with keys, and what changes nothing."""
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if len(asked) == 2 else status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{proxy.server_port}") as client:
            client.append("anna", [{"item": 1, "key": "k"}])
            assert len(asked) == 2 and asked[0] == asked[1]
            with pytest.raises(ServerError) as refused:
                client.append("anna", [1])
        proxy.shutdown()
    assert refused.value.status == status and len(asked) == 3


def test_a_server_takes_no_connection_before_it_can_answer(run, tmp_path, monkeypatch):
    """A balancer would wait for it, instead of asking another."""
    taken = []

    class Service:
        def __init__(self, *_, **__):
            with socket.socket() as client:
                taken.append(client.connect_ex(("127.0.0.1", port)))
            raise RunError("far enough")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(http_server, "Service", Service)
    where = {"host": "127.0.0.1", "port": port, "device": "cpu", "threads": 1, "drain": 1.0}
    with pytest.raises(RunError):
        http_server.run_server(run, str(tmp_path / "e.sqlite"), ServingConfig(), **where)
    assert taken == [errno.ECONNREFUSED]


def test_a_missing_extra_is_named(run, tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from blossomrec.cli import main\n"
        f"sys.exit(main(['serve', {str(run)!r}, '--store', {str(tmp_path / 'e.sqlite')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'uvicorn'" in done.stderr and "pip install 'blossomrec[serve]'" in done.stderr


def test_the_client_alone_needs_nothing_else():
    code = (
        "import sys; from blossomrec.serving import Client; Client()\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "polars", "numpy", "fastapi", "pydantic"}


def test_collections_of_garbage_pass_over_the_imports(run, tmp_path):
    """A look through all of them would hold up every answer; the model is not among them."""
    code = (
        "import gc; from blossomrec.cli import main; from blossomrec.serving.http import server\n"
        "def told(*_, **__): print(len(gc.get_objects()), gc.get_freeze_count()); raise OSError\n"
        "server.Service = told\n"
        f"main(['serve', {str(run)!r}, '--store', {str(tmp_path / 'e.sqlite')!r}, '--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    looked_at, passed_over = map(int, done.stdout.split())
    assert passed_over > 100_000 and looked_at < passed_over / 10
    # What is collected at the end of a process is not in the way.
    assert "leaked" not in done.stderr
