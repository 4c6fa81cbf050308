"""The random number generators that training draws from: seeding, saving, restoring."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Within, all generators of :func:`seed_everything` are seeded; then they go on as before.

    What the caller draws afterwards does not depend on what was done within, nor on the seed.
    """
    before = capture(device)
    try:
        seed_everything(seed, device)
        yield
    finally:
        restore(*before, device)


def seed_everything(seed: int, device: torch.device = CPU) -> None:
    """Seed the global generators of Python, NumPy and torch, those of the CPU and of ``device``."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed, which seeds all GPUs, even those that are not used.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def capture(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of all generators, as tensors and as JSON-ready numbers."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numbers = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    return tensors, numbers


def restore(tensors: dict[str, Tensor], numbers: dict[str, Any], device: torch.device) -> None:
    """Put all generators back; a CUDA state is used where the device is a GPU and it is there."""
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
