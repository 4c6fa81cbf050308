"""Trials at the same time: a process for each, which ends with the one that started it.

``python -m blossomrec.tuning.workers FOLDER NUMBER JOBS`` runs one trial.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from blossomrec.errors import BlossomRecError, RunError
from blossomrec.training.watch import Interrupts, TrainingInterrupted
from blossomrec.tuning.study import open_study, read_search
from blossomrec.tuning.trial import run_trial
from blossomrec.tuning.trials import Trials

# Seconds between two looks at the processes.
LOOK = 0.1


def run_side_by_side(trials: Trials) -> None:
    """Run trials in as many processes as there are to be jobs, until there is none left.

    Raises:
        TrainingInterrupted: a signal came; the trainings under way saved checkpoints.
        RunError: a process could not go on; it has said why on standard error.
    """
    folder, jobs = trials.folder, trials.search.options.jobs
    running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
    with Interrupts() as interrupts:
        try:
            while interrupts.received is None:
                for slot in set(range(jobs)) - running.keys():
                    if (number := trials.next()) is None:
                        break
                    running[slot] = number, _start(folder, number, slot, jobs)
                if not running:
                    return
                time.sleep(LOOK)
                for slot, (number, process) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[slot]
                    if process.returncode > 0:
                        raise RunError(f"trial {number} cannot go on: its process says why above")
                    if process.returncode:
                        # One that was killed cannot tell the study.
                        signum = -process.returncode
                        trials.lost(number, f"its process was ended by signal {signum}")
                    else:
                        trials.settle(number)
            raise TrainingInterrupted(interrupts.received)
        finally:
            _stop([process for _, process in running.values()])


def _start(folder: Path, number: int, slot: int, jobs: int) -> subprocess.Popen[bytes]:
    arguments = [str(folder), str(number), str(jobs)]
    # In a session of its own: a Ctrl-C on the terminal comes once, from us.
    return subprocess.Popen(
        [sys.executable, "-m", "blossomrec.tuning.workers", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | _gpu(slot),
    )


def _gpu(slot: int) -> dict[str, str]:
    """The variable by which a process sees one of several GPUs."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    known = visible if len(visible) == count else [str(one) for one in range(count)]
    return {"CUDA_VISIBLE_DEVICES": known[slot % count]}


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let trainings save a checkpoint and end."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _end_with_parent() -> None:
    # Nothing is ever written to it: the end of the file is the end of the parent.
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> int:
    folder, number, jobs = Path(sys.argv[1]), *map(int, sys.argv[2:])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    try:
        search = read_search(folder)
        run_trial(folder, search, open_study(folder, search), number)
    except (BlossomRecError, OSError) as error:
        print("blossomrec:", *str(error).splitlines(), file=sys.stderr)
        return 2
    except TrainingInterrupted as stop:
        print(f"blossomrec: {stop}", file=sys.stderr)
        return 128 + stop.signum
    return 0


if __name__ == "__main__":
    sys.exit(main())
