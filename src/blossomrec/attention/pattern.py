"""The power-law pattern of the short-term path: which distances an event looks back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NearPattern:
    """Every distance below ``window``, and every power of ``base``, rounded.

    About window + log(length) of them. A base of 2 is the published one.

    Example:
        >>> NearPattern(window=2).distances(20), NearPattern(window=2, base=3.0).distances(20)
        ([0, 1, 2, 4, 8, 16], [0, 1, 3, 9])
    """

    window: int
    base: float = 2.0

    def distances(self, length: int) -> list[int]:
        """Distances that are visible in a history of ``length`` events, rising."""
        near = list(range(min(self.window, length)))
        power = 1.0
        while round(power) < length:
            if round(power) > (near[-1] if near else -1):
                near.append(round(power))
            power *= self.base
        return near

    def is_visible(self, distance: Tensor) -> Tensor:
        """Whether non-negative integer distances belong to the pattern, bool of the same shape."""
        if self.base == 2.0:
            powers = (distance > 0) & (distance & (distance - 1) == 0)
        else:
            longest = int(distance.max()) + 1 if distance.numel() else 0
            known = torch.tensor(self.distances(longest), device=distance.device)
            powers = torch.isin(distance, known.to(distance.dtype))
        return (distance < self.window) | powers
