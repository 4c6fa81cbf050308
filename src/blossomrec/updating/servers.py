"""Servers that use the link to a run: told of a new one, and asked whether they have it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import NamedTuple

from blossomrec.errors import BlossomRecError
from blossomrec.run import run_version
from blossomrec.serving.announced import Announced, announced_servers
from blossomrec.serving.client import Client
from blossomrec.updating.runs import Runs

TOKEN = "BLOSSOMREC_TOKEN"
PAUSE = 0.2


class Served(NamedTuple):
    """Whether a server has taken a run, or cannot be told from here; and the same in words."""

    took: bool
    told: str


def take_new_run(runs: Runs, name: str, wait: float) -> list[Served]:
    """Have the servers of ``current`` take the run that it leads to, one after the other.

    Each is sent SIGHUP and must then answer with the weights of the run.

    Args:
        wait: seconds that each one has.
    """
    version = run_version(runs.path(name))
    return [_take(one, version, wait) for one in announced_servers(runs.folder)]


def _take(server: Announced, version: str, wait: float) -> Served:
    if not server.is_here:
        return Served(True, f"{server.url} runs on {server.host}: send it SIGHUP there")
    try:
        os.kill(server.pid, signal.SIGHUP)
    except ProcessLookupError:
        return Served(True, f"{server.url} has ended")
    except PermissionError:
        return Served(True, f"{server.url} is another user's: send process {server.pid} SIGHUP")
    end, last = time.monotonic() + wait, "nothing"
    while True:
        client = Client(server.url, token=os.environ.get(TOKEN), timeout=5, retries=0)
        with contextlib.suppress(BlossomRecError, OSError), client:
            last = client.ready()["model"]
        if last == version:
            return Served(True, f"{server.url} answers with {version}")
        if time.monotonic() > end:
            return Served(False, f"{server.url} answers with {last}, not {version}")
        time.sleep(PAUSE)
