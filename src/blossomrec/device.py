"""Where to compute: the one place that looks for a GPU."""

from __future__ import annotations

import torch

from blossomrec.errors import ConfigError


def resolve_device(name: str, option: str = "device") -> str:
    """The device that "auto", "cpu" or "cuda" stands for here.

    Raises:
        ConfigError: another name, or "cuda" without a GPU; the message names ``option``.
    """
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"{option} is {name!r}: choose one of auto, cpu, cuda")
    if name == "cuda" and not there:
        raise ConfigError(f"{option} is 'cuda': torch finds no CUDA device here")
    return ("cuda" if there else "cpu") if name == "auto" else name
