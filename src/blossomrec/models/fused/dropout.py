"""Dropout whose mask is computed again in the backward pass, from a seed, instead of being kept."""

from __future__ import annotations

import torch
from torch import Tensor

# A decision takes 16 bits of a random number.
LEVELS = 1 << 16


def draw_seed(device: torch.device) -> Tensor:
    """A seed from PyTorch's generator of the device, int64 [1]: the host does not wait for it."""
    return torch.randint(1 << 62, (1,), device=device)


def constants(p: float) -> dict[str, int | float]:
    """How many levels of a random number drop, and the factor of what is kept."""
    dropped = round(p * LEVELS)
    return {"DROPPED": dropped, "KEPT": LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0}
