"""Processor time of a command with all processes that it starts, whoever ends them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

# Seconds between two looks; what a process did after the last one is not counted.
LOOK = 0.1


def run_counted(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; gives its seconds on the clock and those of processors.

    Raises:
        CalledProcessError: it failed.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seconds: dict[int, float] = {process.pid: 0.0}
    while process.poll() is None:
        _count(seconds)
        time.sleep(LOOK)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return time.perf_counter() - begun, sum(seconds.values())


def _count(seconds: dict[int, float]) -> None:
    """Bring the seconds of known processes, and of those that they started, up to date."""
    there = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may have spaces.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks = int(fields[11]) + int(fields[12])
        there[int(folder.name)] = int(fields[1]), ticks / os.sysconf("SC_CLK_TCK")
    # A process has a larger number than the one that started it, as long as they do not wrap.
    for number in sorted(there):
        parent, used = there[number]
        if number in seconds or parent in seconds:
            seconds[number] = used
