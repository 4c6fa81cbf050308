"""Lightning Fabric for a configuration, and the memory that training took."""

from __future__ import annotations

import logging
import resource
import sys
from typing import Literal

import torch

from blossomrec.config import TrainingConfig
from blossomrec.device import resolve_device

try:
    from lightning_fabric import Fabric
except ImportError:
    # The package `lightning` brings the same Fabric under its own name.
    from lightning.fabric import Fabric  # pyright: ignore[reportMissingImports]


def open_fabric(config: TrainingConfig) -> Fabric:
    """Fabric on one device, in the precision asked for.

    Raises:
        ConfigError: ``device`` is cuda and there is none.
    """
    device = resolve_device(config.device, "training.device")
    for name in ("lightning_fabric", "lightning.fabric"):
        # It would announce its precision, and tips, where silence was asked for.
        logging.getLogger(name).setLevel(logging.WARNING)
    precision = resolve_precision(config, device)
    return Fabric(accelerator=device, devices=1, precision=precision)


def resolve_precision(config: TrainingConfig, device: str) -> Literal["32-true", "bf16-mixed"]:
    """The precision that ``config`` stands for on a device, "cpu" or "cuda"."""
    if config.precision == "auto":
        return "bf16-mixed" if device == "cuda" else "32-true"
    return config.precision


def peak_mib(device: torch.device) -> float:
    """Most memory held so far in MiB: of torch on the GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
