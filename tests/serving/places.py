"""Places where a store of events can be, for tests that hold for each of them."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.store import EventStore

NAMES = ("valkey-server", "redis-server")
# What docs/serving.md tells to start it with, and files in which a word can be looked for.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
READABLE = ("--rdbcompression", "no")
PATIENCE = 60.0


def missing() -> str | None:
    """Why there can be no Redis server here, None where there can."""
    if find_spec("redis") is None:
        return "the package redis is not installed"
    return None if _binary() else f"there is no {' and no '.join(NAMES)}"


def _binary() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Place:
    """A file of its own for each test.

    Attributes:
        where: as ``--store`` takes it.
        folder: with the files in which it keeps events.
    """

    def __init__(self, folder: Path):
        self.folder, self.where = folder, str(folder / "events.sqlite")

    def open(self) -> EventStore:
        return store_opener(self.where)[0]()

    def content(self) -> bytes:
        """Of all its files."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return b"".join(path.read_bytes() for path in files)


class Redis(Place):
    """A Redis or Valkey server on loopback."""

    def __init__(self, folder: Path, *flags: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.where = folder, f"redis://127.0.0.1:{self.port}/0"
        self._flags = (*(flags or DURABLE), *READABLE)
        self.start()

    def start(self) -> None:
        binary = _binary()
        assert binary is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command = [binary, *options, "--daemonize", "no", *self._flags]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while not self._answers():
            assert time.monotonic() < end and self._process.poll() is None
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG\r\n"
        except OSError:
            return False

    def ask(self, *words: str) -> bytes:
        """The first part of the answer to a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(f"{' '.join(words)}\r\n".encode())
            return connection.recv(65_536)

    def kill(self) -> None:
        """With the signal that leaves no time for anything."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(PATIENCE)

    def pause(self, paused: bool) -> None:
        """Stand still, or go on."""
        self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)


def needs_redis(function: Any) -> Any:
    """Mark a test that starts a server."""
    return pytest.mark.skipif(missing() is not None, reason=str(missing()))(function)


def metric(text: str, name: str) -> float:
    """The value of a measure in the text of ``/metrics``."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])
