"""Commands in processes that need not import anything: most of what a short one takes.

One process imports PyTorch and what serves models, and does nothing else. It is forked for each
command, which is then in a process of its own as one of ``python -m blossomrec`` is, with its
arguments, environment, signals and exit code.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# They begin no threads, which a forked process would not have.
CONTEXT.set_forkserver_preload(
    ["blossomrec.commands.serving", "blossomrec.recommender", "blossomrec.serving.http.server"]
)


class ForkedCommand:
    """``blossomrec`` with arguments, in a process that is forked from one that has imported it.

    Args:
        environment: what it has of it besides that of this process.
        files: that it may have open, where it is not as many as this process.

    Attributes:
        stdout: what it prints, as text.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        environment: Mapping[str, str] | None = None,
        *,
        files: int | None = None,
    ):
        read, write = CONTEXT.Pipe(duplex=False)
        self._shown = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        words = ["blossomrec", *map(str, arguments)]
        given = words, os.environ | (environment or {}), os.getcwd(), files
        self._process = CONTEXT.Process(target=_run, args=(*given, write, self._shown.name))
        with read, write:
            self._process.start()
            self.stdout = os.fdopen(os.dup(read.fileno()))

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """As that of ``subprocess``: the exit code, negative for a signal, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> tuple[int, str]:
        """Exit code and what went to standard error."""
        self._process.join(timeout)
        code = self.poll()
        assert code is not None, f"it still runs after {timeout} seconds"
        self.stdout.close()
        with self._shown:
            return code, self._shown.read()


def _run(
    words: list[str],
    environment: dict[str, str],
    folder: str,
    files: int | None,
    stdout: Connection,
    stderr: str,
) -> None:
    """What the forked process does."""
    with stdout, open(stderr, "w") as shown:
        for number, given in ((1, stdout), (2, shown)):
            os.dup2(given.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    sys.argv = words
    try:
        runpy.run_module("blossomrec", run_name="__main__", alter_sys=True)
    finally:
        # Processes of multiprocessing end without.
        atexit._run_exitfuncs()
