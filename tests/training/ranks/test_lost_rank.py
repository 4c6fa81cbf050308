"""A rank that dies takes the others along, soon and in one line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from small_training import logged

from blossomrec.training.checkpoint import Checkpoints
from forked_commands import Ended, ForkedCommand
from small_options import small_flags

# So long a job may go on without one of its ranks.
SECONDS = 60.0


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def training(log, run: Path, *flags: str) -> ForkedCommand:
    return ForkedCommand(["train", log.folder, run, *flags])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_rank_ends_the_job_which_goes_on(tiny_log, tmp_path):
    run = tmp_path / "run"
    options = {"devices": 2, "epochs": 1_000, "patience": 1_000, "checkpoint_overhead": 1}
    process = training(tiny_log, run, "--quiet", *small_flags(**options))
    try:
        killed, seconds, ended = killed_rank(process, run)
    finally:
        # As torchrun, it takes its ranks along.
        process.send_signal(signal.SIGTERM)
    again = f"blossomrec train {tiny_log.folder} {run} --resume auto"
    line = f"was killed by SIGKILL (process {killed}); to go on: {again}\n"
    assert ended.stderr.startswith("blossomrec: rank ") and ended.stderr.endswith(line), ended
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert seconds < SECONDS
    before = Checkpoints(run / "checkpoints").peek()
    assert before is not None
    epochs = before.state["training"]["epoch"] + 1
    options |= {"epochs": epochs, "devices": 1}
    on = training(tiny_log, run, "--resume", "auto", "--quiet", *small_flags(**options))
    ended = on.wait(SECONDS)
    assert (ended.code, ended.stderr) == (0, "")
    assert len(logged(run)) == epochs


def killed_rank(process: ForkedCommand, run: Path) -> tuple[int, float, Ended]:
    """Kill a rank of a training; gives its process, seconds until the end, and what came of it."""
    while not list((run / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.wait(0)
        time.sleep(0.05)
    killed, begun = children(process.pid)[-1], time.monotonic()
    os.kill(killed, signal.SIGKILL)
    ended = process.wait(2 * SECONDS)
    return killed, time.monotonic() - begun, ended
