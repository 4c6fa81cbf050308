"""The engine that trains the trials of a search by the workers of Ray, on one machine or many.

The study is held by this process alone: a worker is given values, tells validations and hears
whether to go on, so that the study may lie where only this machine sees it.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from blossomrec.engines import Kind, connected, load_ray, room
from blossomrec.errors import RunError
from blossomrec.training.watch import Interrupts, TrainingInterrupted
from blossomrec.tuning.exchange import Exchange
from blossomrec.tuning.study import DESCRIPTION, Search
from blossomrec.tuning.trial import Ended, ToldTrial, train_trial
from blossomrec.tuning.trials import Trials

# Seconds between two looks at whether a signal came.
LOOK = 0.5


def run_on_ray(trials: Trials) -> None:
    """Ray places the trials, each a task with a GPU, or else with its share of the cores.

    The log and the folder of the search are to be found on all machines, under the same paths. A
    trial whose worker dies is lost alone, and done again.

    Raises:
        RunError: the cluster has no GPU, or no core.
        TrainingInterrupted: a signal came; the trainings under way saved checkpoints.
        BlossomRecError: as a worker raised it.
    """
    ray = load_ray()
    with connected(ray), Interrupts() as interrupts:
        under_way = _UnderWay(ray, trials)
        stopping = False
        while True:
            if interrupts.received is None:
                under_way.begin_trials()
            elif not stopping:
                stopping = True
                under_way.stop()
            if not under_way.trainings:
                break
            under_way.wait()
        if interrupts.received is not None:
            raise TrainingInterrupted(interrupts.received)


class _UnderWay:
    """Trials that Ray's workers train."""

    def __init__(self, ray: Any, trials: Trials):
        self._ray, self._trials = ray, trials
        folder, search = trials.folder.resolve(), trials.search
        # Workers have another working folder.
        self._given = folder, replace(search, log=search.log.resolve())
        kind = _kind(ray, search)
        machines, jobs = room(ray, kind), search.options.jobs
        self._limit = min(jobs or sum(machines), sum(machines))
        self._cores = 1 if kind == "GPU" else share(machines, self._limit)
        self._train = ray.remote(_train).options(
            num_cpus=self._cores, num_gpus=int(kind == "GPU"), max_retries=0
        )
        # Needs nothing to be placed, and is there again, with what it was asked, when it dies.
        anew = {"max_restarts": -1, "max_task_retries": -1}
        start = ray.remote(Exchange).options(
            num_cpus=0, max_concurrency=2 * self._limit + 2, **anew
        )
        self._exchange = start.remote()
        self._next_report = self._exchange.take.remote()
        # By the call that is answered at the end of the training.
        self.trainings: dict[Any, tuple[int, ToldTrial]] = {}

    def begin_trials(self) -> None:
        """Begin as many as there is room for."""
        trials = self._trials
        while len(self.trainings) < self._limit and (number := trials.next()) is not None:
            told = ToldTrial(trials.search, trials.study, number)
            if (values := told.values()) is None:
                trials.settle(number)
                continue
            given = self._exchange, *self._given, number, values
            call = self._train.remote(*given, threads=self._cores)
            self.trainings[call] = number, told

    def wait(self) -> None:
        """Answer a validation, or take what came of a training, where there is one soon."""
        calls = [self._next_report, *self.trainings]
        done, _ = self._ray.wait(calls, timeout=LOOK)
        for call in done:
            if call is self._next_report:
                self._answer(*self._ray.get(call))
                self._next_report = self._exchange.take.remote()
            else:
                self._settle(call, *self.trainings.pop(call))

    def stop(self) -> None:
        """Have the trainings save checkpoints and end."""
        for call in self.trainings:
            self._ray.cancel(call)

    def _answer(self, number: int, epoch: int, value: float) -> None:
        told = dict(self.trainings.values()).get(number)
        # Of a worker that only seemed to be dead, the trial is another one's by now.
        ends = True if told is None else told.report(epoch, value)
        self._exchange.answer.remote(number, ends)

    def _settle(self, call: Any, number: int, told: ToldTrial) -> None:
        exceptions = self._ray.exceptions
        try:
            told.end(self._ray.get(call))
        except exceptions.TaskCancelledError:
            # It goes on from its checkpoint when the search does.
            return
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            self._trials.lost(number, f"its worker died: {error}")
        else:
            self._trials.settle(number)


def _train(
    exchange: Any,
    folder: Path,
    search: Search,
    number: int,
    values: dict[str, Any],
    *,
    threads: int,
) -> Ended:
    """In a process of Ray's: train a trial."""
    import torch

    ray = load_ray()
    # Whatever OMP_NUM_THREADS is where Ray was started.
    torch.set_num_threads(threads)
    for path in (folder / DESCRIPTION, search.log):
        if not path.exists():
            raise RunError(
                f"{path} is not there on the machine {socket.gethostname()}: all machines of the "
                "cluster need the log and the folder of the search under the same paths"
            )

    def report(epoch: int, value: float) -> bool:
        return ray.get(exchange.report.remote(number, epoch, value))

    return train_trial(folder, search, number, values, report)


def _kind(ray: Any, search: Search) -> Kind:
    """What a trial needs one of."""
    device = search.config.training.device
    there = device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
    return "GPU" if device == "cuda" or there else "CPU"


def share(machines: list[int], jobs: int) -> int:
    """The most cores that each of so many jobs can have, on machines with so many.

    Example:
        >>> share([8, 8, 4], 4)
        4
    """
    fitting = (
        cores
        for cores in range(max(machines), 1, -1)
        if sum(machine // cores for machine in machines) >= jobs
    )
    return next(fitting, 1)
