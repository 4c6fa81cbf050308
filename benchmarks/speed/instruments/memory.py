"""The one way in which all benches measure memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.speed.instruments.timing import synchronize

Result = TypeVar("Result")

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_THP_DISABLE = 41  # PR_SET_THP_DISABLE of linux/prctl.h


def peak_mib(run: Callable[[], Any], device: str) -> float:
    """Memory that a call takes besides what was there before it, in MiB.

    On a GPU this is what torch allocated. Elsewhere it is what the process held at most; where the
    system cannot forget an earlier peak, only what lies above that is seen.
    """
    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        synchronize(device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _forget_peak()
    before = _peak_bytes()
    run()
    return (_peak_bytes() - before) / 2**20


def peak_of_process() -> float:
    """Most memory that this process has ever held, in MiB."""
    return _peak_bytes() / 2**20


def _forget_peak() -> None:
    """Let the process' peak be what it holds now, without what was freed and kept for later."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Most bytes that the process has held."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        if found:
            return int(found[1]) * 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 2**10


def free_bytes(device: str) -> int:
    """Memory that is still to be had."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    names = os.sysconf_names
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call in a process of its own, so that one measurement sees no memory of another."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


def exact_peaks() -> None:
    """Let this process hold from now on what lives, and nothing by chance; it gets slower by that.

    Freed memory goes back to the system at once, and pages of 2 MiB are not used.
    """
    with contextlib.suppress(OSError, AttributeError):
        system = ctypes.CDLL(None)
        system.mallopt(_MMAP_THRESHOLD, 2**17)
        system.prctl(_THP_DISABLE, 1, 0, 0, 0)
