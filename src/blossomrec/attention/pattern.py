"""The power-law pattern of the short-term path: which distances an event looks back."""

from __future__ import annotations

from torch import Tensor


def distances(window: int, length: int) -> list[int]:
    """Distances that are visible in a history of ``length`` events, rising.

    Every distance below ``window``, and every power of two: about window + log2(length) of them.
    """
    near = range(min(window, length))
    powers = (1 << exponent for exponent in range(length.bit_length()))
    return [*near, *(power for power in powers if window <= power < length)]


def is_visible(distance: Tensor, window: int) -> Tensor:
    """Whether non-negative integer distances belong to the pattern, bool of the same shape."""
    return (distance < window) | ((distance > 0) & (distance & (distance - 1) == 0))
