"""Where to compute: the one place that looks for a GPU, and what is left to a forked child.

PyTorch hands its work to a pool of threads that a forked child believes to have, and waits for them
for ever; with a single thread it computes by itself. Polars has no such choice, so what the child
asks for must not need its pool. The spawn start method of ``multiprocessing`` has none of these
limits.
"""

from __future__ import annotations

import os
import sys

from blossomrec.errors import ConfigError, RunError


def resolve_device(name: str, option: str = "device") -> str:
    """The device that "auto", "cpu" or "cuda" stands for here.

    Raises:
        ConfigError: another name, or "cuda" without a GPU; the message names ``option``.
    """
    # Logs are read without PyTorch.
    import torch

    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"{option} is {name!r}: choose one of auto, cpu, cuda")
    if name == "cuda" and not there:
        raise ConfigError(f"{option} is 'cuda': torch finds no CUDA device here")
    return ("cuda" if there else "cpu") if name == "auto" else name


_lost: set[str] = set()


def refuse_lost_threads(what: str) -> None:
    """Raise RunError where ``what`` needs threads of Polars that a fork has left behind."""
    if "polars" in _lost:
        raise RunError(
            f"{what} cannot be read in a forked process, which has lost the threads of polars: "
            "read it before the fork, or start processes with the spawn method"
        )


def _after_fork() -> None:
    _lost.update({"polars", "torch"} & sys.modules.keys())
    if "torch" in _lost:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
