"""The items of histories as candidates of what comes next, as they are mixed into the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OwnItems:
    """The N distinct items of B histories, by history, as they stand at the end of each.

    Attributes:
        num_histories: B.
        history: int64 [N], rising.
        items: item rows, int64 [N].
        led: whether the last item of the history was there before, bool [B].
        shares: logarithms of the shares of decayed counts and steps, [N, R].
        buckets: of the gap since the item was last seen, on each scale, int64 [N, S].
        weights: logarithms of the weights there, [N, S].
    """

    num_histories: int
    history: Tensor
    led: Tensor
    items: Tensor
    shares: Tensor
    buckets: Tensor
    weights: Tensor

    def part(self, start: int, stop: int) -> OwnItems:
        """Of the histories start .. stop-1."""
        edges = torch.tensor([start, stop], device=self.history.device)
        first, end = torch.searchsorted(self.history, edges).tolist()
        columns = (self.items, self.shares, self.buckets, self.weights)
        history = self.history[first:end] - start
        led = self.led[start:stop]
        return OwnItems(stop - start, history, led, *(each[first:end] for each in columns))

    @staticmethod
    def join(parts: list[OwnItems]) -> OwnItems:
        """Of histories one part after another."""
        starts = [0]
        for each in parts:
            starts.append(starts[-1] + each.num_histories)
        shifted = [each.history + start for each, start in zip(parts, starts, strict=False)]
        columns = [(each.items, each.shares, each.buckets, each.weights) for each in parts]
        joined = (torch.cat(column) for column in zip(*columns, strict=True))
        led = torch.cat([each.led for each in parts])
        return OwnItems(starts[-1], torch.cat(shifted), led, *joined)
