"""Which processes serve a link to a run, told beside it, so that they can be told of a new one."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blossomrec.files import exclusive, read_json, write_json

SERVERS = "servers"


class Announced(NamedTuple):
    """A server that runs: where, and what it answers to from there."""

    host: str
    pid: int
    url: str

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that it can be sent a signal."""
        return self.host == socket.gethostname()


@contextlib.contextmanager
def announced(run: str | Path, url: str) -> Iterator[None]:
    """While entered, ``servers/`` beside the link ``run`` tells that this process serves it.

    The file is locked for as long, by the kernel, so that one that a killed server has left is
    known to be nobody's, whoever has its process id by then. Where ``run`` is no link, nothing is
    told; where the folder cannot be written, a warning says so.
    """
    run = Path(run)
    with contextlib.ExitStack() as stack:
        if run.is_symlink():
            path = run.parent / SERVERS / f"{socket.gethostname()}-{os.getpid()}.json"
            try:
                path.parent.mkdir(exist_ok=True)
                write_json(path, {"host": socket.gethostname(), "pid": os.getpid(), "url": url})
                stack.enter_context(exclusive(path))
                stack.callback(path.unlink, missing_ok=True)
            except OSError as error:
                warnings.warn(
                    f"updates of {run} are not told to this server: {error}", stacklevel=3
                )
        yield


def announced_servers(runs: Path) -> list[Announced]:
    """The servers of the link in a folder that run now; what others have left is removed."""
    found = []
    for path in sorted((runs / SERVERS).glob("*.json")):
        try:
            with exclusive(path):
                path.unlink(missing_ok=True)
        except BlockingIOError:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                told = read_json(path)
                found.append(Announced(str(told["host"]), int(told["pid"]), str(told["url"])))
        except FileNotFoundError:
            continue
    return found


def local_url(address: str, port: int) -> str:
    """Where a server that listens at an address answers those on its machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
