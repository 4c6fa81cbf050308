"""Commands in processes that need not import anything: most of what a short one takes.

One process imports PyTorch and what trains and serves models, and does nothing else. It is forked
for each command, which is then in a process of its own as one of ``python -m blossomrec`` is, with
its arguments, environment, signals and exit code; and for each of several ranks. What is read from
the environment while modules are imported is that of the first process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

CONTEXT = multiprocessing.get_context("forkserver")
# Of these only Polars begins threads, which tidy its memory: a forked process does without them.
CONTEXT.set_forkserver_preload(
    [
        *("blossomrec.commands.serving", "blossomrec.serving.http.server"),
        *("blossomrec.recommender", "blossomrec.training.loop"),
    ]
)
# Seconds for what must happen, but may take its time on a busy machine.
PATIENCE = 120.0


class Ended(NamedTuple):
    """Exit code, negative for a signal, what was printed since the last line, and what went to
    standard error."""

    code: int
    stdout: str
    stderr: str


class Forked:
    """A function with arguments, in a process that is forked from one that has imported much.

    It ends with this process at the latest.

    Args:
        function: that a process which imports its module finds there.
        environment: what it has of it besides that of this process.
        files: that it may have open, where it is not as many as this process.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        files: int | None = None,
    ):
        # Files hold whatever is printed, whether somebody reads it or not.
        self._stdout, self._stderr = (
            tempfile.NamedTemporaryFile("r")  # noqa: SIM115
            for _ in range(2)
        )
        called = function, arguments
        given = os.environ | (environment or {}), os.getcwd(), files
        shown = self._stdout.name, self._stderr.name
        self._process = CONTEXT.Process(target=_run, args=(*called, *given, *shown), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def send_signal(self, number: int) -> None:
        # Once it has ended nobody is there.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """As that of ``subprocess``: the exit code, negative for a signal, None while it runs."""
        return self._process.exitcode

    def line(self, timeout: float = PATIENCE) -> str:
        """The next line that it prints; AssertionError where none comes, with all it said."""
        line, until = "", time.monotonic() + timeout
        while not line.endswith("\n"):
            ended = self.poll() is not None
            line += self._stdout.readline()
            if not line.endswith("\n"):
                if ended or time.monotonic() > until:
                    raise AssertionError(f"no line but {line!r}: {self.wait(0)}")
                time.sleep(0.01)
        return line

    def wait(self, timeout: float) -> Ended:
        """What came of it; it is killed, and AssertionError raised, where it still runs then."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self.send_signal(signal.SIGKILL)
        with self._stdout, self._stderr:
            shown = self._stdout.read(), self._stderr.read()
        assert code is not None, f"it still ran after {timeout} seconds: {shown}"
        return Ended(code, *shown)


class ForkedCommand(Forked):
    """``blossomrec`` with arguments, as :class:`Forked`."""

    def __init__(
        self,
        arguments: Sequence[Any],
        environment: Mapping[str, str] | None = None,
        *,
        files: int | None = None,
    ):
        words = ["blossomrec", *map(str, arguments)]
        super().__init__(_command, words, environment=environment, files=files)


def _command(words: list[str]) -> None:
    sys.argv = words
    runpy.run_module("blossomrec", run_name="__main__", alter_sys=True)


def forked_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Ended]:
    """What came of a function that so many ranks did together, as those that torchrun starts."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)},
        **{"TORCHELASTIC_RUN_ID": "forked", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    }
    ranks = [
        Forked(function, *arguments, environment={**job, "RANK": str(one), "LOCAL_RANK": str(one)})
        for one in range(count)
    ]
    return [rank.wait(2 * PATIENCE) for rank in ranks]


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    folder: str,
    files: int | None,
    stdout: str,
    stderr: str,
) -> None:
    """What the forked process does."""
    # What it has from the other one stays: looking through that for garbage would copy it.
    gc.freeze()
    for number, name in ((1, stdout), (2, stderr)):
        with open(name, "w") as shown:
            os.dup2(shown.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # It ends by it, even where the tests are run with nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Several of them run at the same time.
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        # multiprocessing ends its processes without calling these.
        atexit._run_exitfuncs()
