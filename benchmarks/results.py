"""Measured runs as data: one JSON line each, from which tables and plots are made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blossomrec import __version__
from blossomrec.errors import ConfigError
from blossomrec.evaluation.evaluation import Evaluation


def result_line(
    evaluation: Evaluation,
    *,
    dataset: str,
    model: str,
    attention: str | None,
    seed: int,
    max_len: int,
    seconds_per_epoch: float | None = None,
    epochs: int | None = None,
    peak_mib: float | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """One measured run, for ``append_result``.

    Args:
        attention: None for models without.
        seed: of the training.
        seconds_per_epoch, epochs, peak_mib: of the training; None for what is not trained.
        device: where it ran, for ``hardware``.

    Returns:
        The options given, the protocol, all metrics, those at 10 by length of history too
        (``by_length``: bounds ``low`` and ``high``, both included, ``users``), and the provenance.
    """
    return {
        "dataset": dataset,
        "model": model,
        "attention": attention,
        "seed": seed,
        "max_len": max_len,
        "protocol": evaluation.protocol.split,
        "ranking": evaluation.protocol.ranking,
        "filter_seen": evaluation.protocol.filter_seen,
        "metrics": _rounded(evaluation.metrics),
        "by_length": [
            {
                "low": part.low,
                "high": part.high,
                "users": part.users,
                "metrics": _rounded(
                    {name: part.metrics[name] for name in part.metrics if name.endswith("@10")}
                ),
            }
            for part in evaluation.slices
        ],
        "seconds_per_epoch": seconds_per_epoch,
        "epochs": epochs,
        "peak_mib": peak_mib,
        **provenance(device),
    }


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What any measurement depends on besides its options: hardware, versions and commit."""
    return {"hardware": hardware(device), "versions": versions(), "commit": commit()}


def append_result(path: str | Path, line: dict[str, Any]) -> None:
    """Append one line to a JSONL file, whole, whoever else is writing to it.

    Raises ConfigError where a value is no JSON or a number is not finite.
    """
    try:
        text = json.dumps(line, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a result cannot be written to {path}: {error}") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _lock(file.fileno())
        # A writer that was killed may have left half a line: it stays alone on its line.
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        gap = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(gap + text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def hardware(device: str | torch.device = "cpu") -> str:
    """Name and number of cores of the processor, and the name of the GPU where one is used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_processor()}, {cores} cores"
    device = torch.device(device)
    return f"{torch.cuda.get_device_name(device)}; {text}" if device.type == "cuda" else text


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "blossomrec": __version__,
    }


def commit() -> str | None:
    """The commit of this checkout, "+" added when what is measured or measures was changed.

    BLOSSOMREC_COMMIT names it for a copy of the checkout without its history.
    """
    if "BLOSSOMREC_COMMIT" in os.environ:
        return os.environ["BLOSSOMREC_COMMIT"]
    folder = Path(__file__).resolve().parent
    changes = _git(folder, "status", "--porcelain", ".", "../src")
    head = _git(folder, "rev-parse", "HEAD")
    # A copy inside some other repository is not tracked by it.
    if head is None or not _git(folder, "ls-files", Path(__file__).name):
        return None
    return f"{head}+" if changes else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _lock(descriptor: int) -> None:
    """Wait until no other process appends; the lock goes with the descriptor."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: a single append is the best there is
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
