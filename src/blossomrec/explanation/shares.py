"""What an explanation says: shares of events in a score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PathShares:
    """What one path of one layer does for a score.

    Attributes:
        weights: float32 [T], attention of the last event within the path, mean over the heads; sums
            to one, where the path sees anything.
        contributions: float32 [T], what passes from each event over this path to all events.
    """

    weights: np.ndarray
    contributions: np.ndarray


@dataclass(frozen=True)
class LayerShares:
    """What one layer does for a score.

    Attributes:
        gates: float32 [H, 2], weights of the long-term and the short-term path at the last event;
            of a union, the shares of the attention on the keys of either. What both see belongs to
            the short-term path.
        selected: blocks that the last event selects, rising, its own left out; for each, how many
            of the ``kv_heads`` do.
        kv_heads: key/value heads, each of which selects for itself.
        long, short: the two paths.
    """

    gates: np.ndarray
    selected: dict[int, int]
    kv_heads: int
    long: PathShares
    short: PathShares


@dataclass(frozen=True)
class Explanation:
    """Why an item has its score.

    Attributes:
        score: of the item.
        contributions: float32 [T], share of each event in the score.
        rest: of the score, from biases.
        block_size: events in a block.
        layers: first to last.
        own: of the score, from the mixture with the items of the history; None where the item is
            not in it, or the model does not mix them in.
    """

    score: float
    contributions: np.ndarray
    rest: float
    block_size: int
    layers: tuple[LayerShares, ...]
    own: float | None = None

    @property
    def own_share(self) -> float:
        """Share of the item's probability that the history has by itself."""
        return 0.0 if self.own is None else -math.expm1(-self.own)
