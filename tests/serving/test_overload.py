"""A server in a process of its own: more clients than it has room for, and its end."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from places import metric
from serving_runs import WAIT, Process

from blossomrec.serving.http.connections import RESERVED
from command_line import refuse

FILES = RESERVED + 60
HALF = (
    b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n{"
)


def connect(server):
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=WAIT)


def rest(connection):
    """Everything that still comes; nothing where the other end has broken off."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def test_heads_that_never_end_do_not_use_up_the_descriptors(run, tmp_path):
    flags = ("--head-seconds", "5")
    with Process(run, tmp_path / "e.sqlite", *flags, files=FILES) as server:
        opened, answers = [], []
        try:
            for _ in range(400):
                opened.append(connect(server))
                opened[-1].sendall(b"GET / HTTP/1.1\r\nHost: ")
            folder = Path(f"/proc/{server.process.pid}/fd")
            if folder.is_dir():
                assert len(os.listdir(folder)) < FILES
            answers = [rest(one) for one in opened]
        finally:
            for one in opened:
                one.close()
        kinds = {b"HTTP/1.1 408 ", b"HTTP/1.1 503 ", b""}
        assert {answer[:13] for answer in answers} <= kinds
        assert sum(answer.startswith(b"HTTP/1.1 408 ") for answer in answers) >= 60
        assert sum(b"too_many_connections" in answer for answer in answers) >= 1
        # All of them are gone: there is room again.
        with urlopen(f"{server.url}/metrics", timeout=WAIT) as answer:
            text = answer.read().decode()
        assert metric(text, 'blossomrec_connections_dropped_total{reason="slow"}') >= 60
        assert metric(text, "blossomrec_connections_open") < 60
        server.signal(signal.SIGTERM)
        code, shown = server.wait()
    assert code == 0
    assert "Traceback" not in shown and "out of system resource" not in shown
    assert f"at most 60 connections, as {FILES} files may be open" in shown
    assert shown.count("more than 60 connections") == 1
    assert len(shown.splitlines()) < 20


def test_too_few_descriptors_are_said_in_a_line(run, tmp_path):
    with pytest.raises(AssertionError, match=r"open: at least \d+ are needed \(ulimit -n\)"):
        Process(run, tmp_path / "e.sqlite", files=RESERVED)


def test_a_half_sent_body_at_the_end(run, tmp_path):
    with Process(run, tmp_path / "e.sqlite", "--drain", "1") as server:
        waiting, gone = connect(server), connect(server)
        with waiting, gone:
            for one in (waiting, gone):
                one.sendall(HALF)
            # Answered after both were read.
            urlopen(f"{server.url}/healthz", timeout=WAIT).close()
            server.signal(signal.SIGTERM)
            gone.close()
            head, _, body = rest(waiting).partition(b"\r\n\r\n")
        code, shown = server.wait()
    assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nconnection: close" in head
    assert json.loads(body)["error"]["code"] == "stopping"
    assert code == 0 and "Traceback" not in shown


class Asker(threading.Thread):
    """Asks over one connection until it is told that there is no more to come."""

    def __init__(self, server):
        super().__init__()
        self.connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT)
        self.answers, self.error, self.told = 0, None, False

    def run(self):
        try:
            while not self.told:
                self.connection.request("GET", "/readyz")
                answer = self.connection.getresponse()
                answer.read()
                self.answers += answer.status == 200
                self.told = answer.getheader("connection") == "close"
        except (OSError, http.client.HTTPException) as error:
            self.error = error


def test_whoever_asks_at_the_end_is_answered_and_told(run, tmp_path):
    with Process(run, tmp_path / "e.sqlite") as server:
        askers = [Asker(server) for _ in range(8)]
        for asker in askers:
            asker.start()
        end = time.monotonic() + WAIT
        while not all(asker.answers for asker in askers):
            assert time.monotonic() < end
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        for asker in askers:
            asker.join(WAIT)
        code, shown = server.wait()
    assert [(asker.told, asker.error) for asker in askers] == [(True, None)] * 8
    assert code == 0 and "Traceback" not in shown


@pytest.mark.parametrize(
    "token, words",
    [
        ("a secret\nin two lines", ["position 9 of BLOSSOMREC_TOKEN"]),
        ("schlüssel und schloss", ["position 5 of BLOSSOMREC_TOKEN"]),
        ("秘密秘密秘密秘密秘密秘密秘密秘密", ["position 1 of BLOSSOMREC_TOKEN"]),
        ("a secret of a file  ", ["BLOSSOMREC_TOKEN begins or ends with a space"]),
    ],
)
def test_a_token_that_no_client_can_send(run, tmp_path, capsys, monkeypatch, token, words):
    monkeypatch.setenv("BLOSSOMREC_TOKEN", token)
    shown = refuse(capsys, "serve", run, "--store", tmp_path / "e.sqlite", words=words)
    assert token not in str(shown)
