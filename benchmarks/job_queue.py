"""Jobs that share a machine: several at a time, first things first, within a given time."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.results import append_result

FOREVER = 1e9


class Job(Protocol):
    """What can be run: it pickles, and its text says what it is."""

    @property
    def needs(self) -> float:
        """Seconds without which it is not begun."""
        ...

    def run(self, device: torch.device, seconds: float) -> list[dict[str, Any]]:
        """The lines that come of it, within ``seconds``."""
        ...


def run_jobs(
    jobs: Sequence[Job], out: Path, *, together: int = 1, seconds: float = FOREVER
) -> list[str]:
    """Run jobs in processes of one thread and append the lines of each as soon as it is done.

    Processes begin jobs in their order; one that needs more time than is left is passed over. After
    ``seconds`` what still runs is ended, without a line. GPUs are taken in turn; a process sees
    its own alone. A job that fails prints why and ends its process, in whose place another one
    begins.

    Returns:
        The jobs of which no line came, in words.
    """
    spawn = multiprocessing.get_context("spawn")
    ends = time.time() + seconds
    taken, done = spawn.Value("i", 0), spawn.Array("b", len(jobs))
    given = (jobs, out, ends, taken, done, gpus())
    workers = {
        spawn.Process(target=_work, args=(number, *given)): number
        for number in range(min(together, len(jobs)))
    }
    for worker in workers:
        worker.start()
    while workers and time.time() < ends:
        left = max(0.0, ends - time.time())
        wait([worker.sentinel for worker in workers], timeout=min(60.0, left))
        for worker in [each for each in workers if not each.is_alive()]:
            number = workers.pop(worker)
            if worker.exitcode:
                again = spawn.Process(target=_work, args=(number, *given))
                workers[again] = number
                again.start()
    for worker in workers:
        worker.kill()  # a training would save its state first, and there is no time left
        worker.join()
    return [str(job) for job, finished in zip(jobs, done[:], strict=True) if not finished]


def gpus() -> list[str]:
    """The GPUs there are, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(n) for n in range(torch.cuda.device_count())] if given is None else given.split(",")


def _work(
    number: int,
    jobs: Sequence[Job],
    out: Path,
    ends: float,
    taken: Any,
    done: Any,
    gpus: Sequence[str],
) -> None:
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    while True:
        with taken.get_lock():
            mine = taken.value
            taken.value += 1
        if mine >= len(jobs):
            return
        job, left = jobs[mine], ends - time.time()
        if left < job.needs:
            continue
        began = time.time()
        try:
            lines = job.run(device, left)
        except Exception:
            print(f"{job}: failed after {time.time() - began:.0f} s", flush=True)
            traceback.print_exc()
            # After an error of a GPU nothing works in this process any more.
            raise SystemExit(1) from None
        for line in lines:
            append_result(out, line)
        done[mine] = 1
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{job}: {time.time() - began:.0f} s, {ends - time.time():.0f} s left", flush=True)
