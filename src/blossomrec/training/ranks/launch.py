"""Ranks on this machine, started as torchrun starts them, and what is told of one that failed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blossomrec.config import RunConfig, to_dict
from blossomrec.device import resolve_device
from blossomrec.errors import BlossomRecError, ConfigError, DataError, RunError, TrainingError
from blossomrec.files import write_json
from blossomrec.ranks import RankLostError, launched
from blossomrec.training.watch import TrainingInterrupted

# What the name of a job begins with whose ranks this module tells of.
OURS = "blossomrec-"
# Errors of a rank that are raised again as what they are: whoever trains goes on differently.
TOLD_APART = {each.__name__: each for each in (ConfigError, DataError, RunError, TrainingError)}


def launch(config: RunConfig, arguments: Sequence[str], again: str) -> None:
    """Run a verb of the command line on ``config.training.devices`` ranks, and wait for them.

    Args:
        config: what the ranks are given as their configuration.
        arguments: of the verb, its name first.
        again: the command line that goes on after a failure.

    Raises:
        ConfigError: there are fewer GPUs.
        RankLostError: a rank was killed, or failed without an error of ours; where it failed with
            one, that is raised.
        SystemExit: the ranks were told to stop, and have said so.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = config.training.devices
    _check_devices(config)
    # What is told of a failed rank is told here, in one line.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).disabled = True
    # As many threads together as one process would have.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    options = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=OURS + uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    with tempfile.TemporaryDirectory(prefix="blossomrec-") as folder:
        path = Path(folder) / "config.json"
        write_json(path, to_dict(config))
        command = ["-m", "blossomrec", *arguments, "--config", str(path)]
        try:
            elastic_launch(options, sys.executable)(*command)
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None
        except ChildFailedError as error:
            _tell(error.failures, again)


def _check_devices(config: RunConfig) -> None:
    if resolve_device(config.training.device, "training.device") != "cuda":
        return
    import torch

    there = torch.cuda.device_count()
    if config.training.devices > there:
        raise ConfigError(
            f"training.devices is {config.training.devices}, but there are {there} GPUs here: "
            "choose no more, or training.device cpu"
        )


def _tell(failures: dict[int, Any], again: str) -> None:
    """Raise what the first of some failed ranks ended with."""

    def order(rank: int) -> int:
        # Those that lost another rank failed because of it.
        failure = failures[rank]
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        return 0 if killed else 2 if _message(failure).startswith(RankLostError.__name__) else 1

    rank = min(failures, key=order)
    failure = failures[rank]
    kind, _, message = _message(failure).partition(": ")
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        message = f"was killed by {name} (process {failure.pid})"
    elif failure.exitcode > 128 and not message:
        # Told to stop, which rank 0 has said.
        raise SystemExit(failure.exitcode)
    else:
        message = f"failed: {message or kind or f'exit code {failure.exitcode}'}"
    raise TOLD_APART.get(kind, RankLostError)(f"rank {rank} {message}; to go on: {again}")


def _message(failure: Any) -> str:
    """What a rank recorded of its error, with the name of its class; empty for nothing."""
    message = failure.error_file_data.get("message", "")
    return message.get("message", "") if isinstance(message, dict) else str(message or "")


def _told_apart(error: Exception) -> Exception:
    """An error as what it is told apart as, by the name of which the launcher knows it."""
    kind = next((each for each in TOLD_APART.values() if isinstance(error, each)), None)
    return error if kind is None else kind(str(error))


@contextmanager
def reported() -> Iterator[None]:
    """Within, an error of a rank is recorded for torchrun, and no more told than needs be."""
    if not launched():
        yield
        return
    try:
        yield
    except TrainingInterrupted as stop:
        if os.environ["RANK"] != "0":
            raise SystemExit(128 + stop.signum) from None
        raise
    except Exception as error:
        from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

        ErrorHandler().record_exception(_told_apart(error))
        told = os.environ["TORCHELASTIC_RUN_ID"].startswith(OURS)
        # Of ours the launcher tells; of a rank that was lost torchrun does.
        if isinstance(error, RankLostError) or (
            told and isinstance(error, BlossomRecError | OSError)
        ):
            raise SystemExit(1) from None
        raise
