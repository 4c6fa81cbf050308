"""Replicas in processes of their own, which are killed and come back, and balancers before them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loads import until
from serving_runs import Process

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
# Of nginx.conf: POST, but nothing is changed.
READING = re.compile(r"/v1/(recommend|similar|explain|titles)$")


def free_port() -> int:
    """One that nobody else takes meanwhile: below those that the system gives by itself."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Fleet:
    """Three servers of one run over one store, each at an address that it keeps.

    Attributes:
        urls: of the replicas.
    """

    def __init__(self, run: Path, store: str):
        self._where, self._ports = (run, store), [free_port() for _ in range(3)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        with ThreadPoolExecutor() as pool:
            self._processes = list(pool.map(self._started, self._ports))

    def _started(self, port: int) -> Process:
        return Process(*self._where, port=port)

    def kill(self, number: int) -> None:
        """With the signal that leaves no time for anything."""
        self._processes[number].signal(signal.SIGKILL)
        self._processes[number].wait()

    def start(self, number: int) -> None:
        self._processes[number] = self._started(self._ports[number])

    def pid(self, number: int) -> int:
        return self._processes[number].process.pid

    def close(self) -> None:
        for process in self._processes:
            process.__exit__()


class Balancer:
    """Sends the requests of a user to one replica, for where there is no nginx to do so.

    Of the replicas, the one whose address and the user's id have the lowest hash: one that is away
    moves its own users alone.
    """

    def __init__(self, urls: list[str], folder: Path):
        self._urls, self.port = urls, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        balancer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = balancer._passed_on(self, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _passed_on(self, asked: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        user = asked.headers.get("X-User") or os.urandom(8).hex()
        repeatable = asked.command != "POST" or READING.match(asked.path)
        found = 502, b""
        for url in sorted(self._urls, key=lambda url: hashlib.sha1((url + user).encode()).digest()):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=15)
            try:
                connection.connect()
            except OSError:
                # Nothing was sent.
                continue
            try:
                connection.request(asked.command, asked.path, body, dict(asked.headers))
                answer = connection.getresponse()
                found = answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                found = 502, b""
            finally:
                connection.close()
            if found[0] not in (502, 503) or not repeatable:
                break
        return found

    def kill(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    close = kill


class Nginx:
    """nginx with ``deploy/nginx.conf``, but for addresses and folders."""

    def __init__(self, urls: list[str], folder: Path):
        port = free_port()
        self.url, self._conf = f"http://127.0.0.1:{port}", configured(urls, port, folder)
        self.start()

    def start(self) -> None:
        command = ["nginx", "-e", "stderr", "-c", str(self._conf), "-g", "daemon off;"]
        # A group of its own: a master that is killed leaves its workers behind.
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        until(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=15)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """Master and workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    close = kill


def configured(urls: list[str], port: int, folder: Path) -> Path:
    """``deploy/nginx.conf`` for replicas and a port on this machine, in a folder of the test's."""
    text = (DEPLOY / "nginx.conf").read_text()
    for place, url in enumerate(urls, 1):
        text = text.replace(f"10.77.0.1{place}:8000", urlsplit(url).netloc)
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    # Its workers are otherwise another user's, to whom the folder is closed.
    text = ("user root;\n" if os.getuid() == 0 else "") + text
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def missing_nginx() -> str | None:
    """Why there can be no nginx here, None where there can."""
    return None if shutil.which("nginx") else "there is no nginx"
