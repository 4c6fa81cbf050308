"""Who computes a job of many pieces: this machine's own processes, or the workers of Ray."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, Literal

from blossomrec.errors import MissingExtraError, RunError, one_of

Engine = Literal["local", "ray"]
Kind = Literal["CPU", "GPU"]


def check_engine(name: str) -> None:
    """Raise ConfigError for what is no engine, MissingExtraError where Ray is not installed."""
    if one_of("engine", name, ("local", "ray")) == "ray":
        load_ray()


def load_ray() -> Any:
    """The package; MissingExtraError without it."""
    # Read when it is imported: reports to its makers are for those who want to send them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(error.name or "ray", "ray") from error
    return ray


@contextlib.contextmanager
def connected(ray: Any) -> Iterator[None]:
    """Be connected: as before, to the cluster that Ray knows of, or to one that is started here."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def room(ray: Any, kind: Kind) -> list[int]:
    """How many GPUs or cores each machine of the cluster has, without those that have none.

    Raises:
        RunError: none has any.
    """
    there = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    if not any(there):
        raise RunError(f"engine is 'ray': the cluster has no {kind} for the model")
    return [count for count in there if count]
