"""Sampling of negatives from a catalogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class NegativeSampler:
    """Draws items with replacement from a fixed distribution; its stream can be saved and resumed.

    Args:
        num_items: size of the catalogue.
        counts: [I] training events of each item, for sampling by popularity (each count plus one,
            so that every item can be drawn); uniform without.
        seed: start of the stream.
    """

    def __init__(self, num_items: int, *, counts: Any = None, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        shares = torch.ones(num_items, dtype=torch.float64)
        if counts is not None:
            shares += torch.as_tensor(np.asarray(counts), dtype=torch.float64)
        self.probabilities = shares / shares.sum()
        # A search in the running sum has no limit on the catalogue, as torch.multinomial has.
        self.cumulative = self.probabilities.cumsum(0)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` items, int64, and their log-probabilities, float32, both on the CPU."""
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64)
        items = torch.searchsorted(self.cumulative, draws * self.cumulative[-1], right=True)
        items = items.clamp(max=len(self.cumulative) - 1)
        return items, self.probabilities[items].log().float()
