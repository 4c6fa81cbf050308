"""The engine that has the workers of Ray, on one machine or many, compute the parts of a job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blossomrec.engines import Kind, connected, load_ray, room
from blossomrec.errors import RunError

# PyTorch is imported while Ray starts.
if TYPE_CHECKING:
    from blossomrec.recommendation.part_engines import PartEngine, PartsWritten
    from blossomrec.recommendation.parts import Advance, PartWriter, Users

# A part whose workers die again and again needs more memory than there is, or breaks them.
RETRIES = 5
# Workers that start before it is known how many parts there are, at most.
AHEAD = 16


@contextlib.contextmanager
def started_ray(device: str) -> Iterator[PartEngine]:
    """The engine of Ray, which starts with its workers while the caller prepares the job.

    Ray places and restarts the workers, and repeats what one had under way that died. Each has a
    GPU where the model is on one, else a core, and writes its parts itself: the log and the folder
    of the output are to be found on all machines, under the same paths.

    What it gives raises:
        RunError: the cluster has no GPU, or no core; workers died again and again.
        BlossomRecError: as a worker raised it.
    """
    ray = load_ray()

    def start() -> list[Any]:
        from blossomrec.device import resolve_device

        end.enter_context(connected(ray))
        workers = _workers(ray, resolve_device(device), AHEAD)
        # An error that is kept keeps its frames, and these the workers: none goes by itself.
        end.callback(lambda: [ray.kill(worker) for worker in workers])
        return workers

    def write(writer: PartWriter, parts: Sequence[Users], advance: Advance) -> PartsWritten:
        workers = starting.result()
        # Those for whom there is no part leave what they hold to others.
        del workers[len(parts) :]
        if len(parts) > len(workers):
            on = writer.output.job.told["device"]
            workers += _workers(ray, on, len(parts), besides=len(workers))
        return _written(ray, workers, writer, parts, advance)

    with contextlib.ExitStack() as end, ThreadPoolExecutor(1) as thread:
        starting = thread.submit(start)
        yield write


def _written(
    ray: Any, workers: list[Any], writer: PartWriter, parts: Sequence[Users], advance: Advance
) -> PartsWritten:
    # Opened by the worker, so that what is wrong with it is raised as by any other call: in a
    # list Ray leaves a reference as it is.
    shared = [ray.put(_for_others(writer))]
    waiting = iter(parts)
    # Calls that are not answered, each with its worker and its part; opening has none.
    under_way: dict[Any, tuple[Any, Users | None]] = {
        worker.open.remote(shared): (worker, None) for worker in workers
    }
    while under_way:
        (call,), _ = ray.wait(list(under_way))
        worker, part = under_way.pop(call)
        _raise_what_failed(ray, call, part)
        following = next(waiting, None)
        if following is not None:
            under_way[worker.write.remote(shared, following)] = worker, following
        if part is not None:
            advance(part[1] - part[0])
            yield part


class Worker:
    """Writes parts in a process of Ray's, where it opens the writer once.

    Its methods take the reference to the writer, alone in a list.
    """

    def __init__(self):
        # What takes longest is done before there is a model.
        import torch

        import blossomrec.recommendation.parts  # noqa: F401

        # There is one for each core, whatever OMP_NUM_THREADS is where Ray was started.
        torch.set_num_threads(1)
        self._writer: PartWriter | None = None

    def open(self, shared: list[Any]) -> None:
        """Have the model before the first part; a worker that is there again has it with one."""
        self._opened(shared)

    def write(self, shared: list[Any], part: Users) -> None:
        self._opened(shared).write(part, lambda users: None)

    def _opened(self, shared: list[Any]) -> PartWriter:
        if self._writer is None:
            ray = load_ray()
            try:
                self._writer = ray.get(shared[0])
            except ray.exceptions.RaySystemError as error:
                # What its own parts raised, such as a log that has changed.
                raise error.client_exc from None
        assert self._writer is not None
        return self._writer


def _for_others(writer: PartWriter) -> PartWriter:
    """The writer for processes whose working folder may be another one."""
    output = replace(writer.output, work=writer.output.work.resolve())
    return replace(writer, output=output)


def _workers(ray: Any, device: str, limit: int, besides: int = 0) -> list[Any]:
    """As many as the cluster has room for, at most so many, besides those that there are."""
    kind: Kind = "GPU" if device == "cuda" else "CPU"
    there = sum(room(ray, kind))
    start = ray.remote(Worker).options(
        num_cpus=1, num_gpus=int(kind == "GPU"), max_restarts=-1, max_task_retries=RETRIES
    )
    return [start.remote() for _ in range(besides, min(there, limit))]


def _raise_what_failed(ray: Any, call: Any, part: Users | None) -> None:
    try:
        ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        what = "opened the model" if part is None else f"wrote users {part[0]:,} to {part[1]:,}"
        raise RunError(
            f"engine is 'ray': {RETRIES + 1} workers that {what} died, perhaps for lack of memory; "
            "the logs of Ray tell more"
        ) from error
