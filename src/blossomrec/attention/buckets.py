"""Padded groups of packed histories, for operations that know only rectangles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention.memo import per_batch
from blossomrec.attention.packing import histories, positions

# Lengths up to the first edge share a group, then each edge doubles. Few groups mean few kernels,
# which is what a GPU waits for; many mean little padding, which is what a CPU works through.
FIRST_EDGE = {"cpu": 16, "cuda": 64}


@dataclass(frozen=True)
class Buckets:
    """Packed histories laid out in padded groups of similar length.

    Attributes:
        slot: int64 [T], row of each event when all padded groups stand one after another.
        shapes: number of histories and padded length of each group.
        lengths: of each group, int64 [n], the true lengths.
    """

    slot: Tensor
    shapes: list[tuple[int, int]]
    lengths: list[Tensor]

    @staticmethod
    @per_batch
    def of(cu_seqlens: Tensor, total: int, max_length: int) -> Buckets:
        edges = [FIRST_EDGE[cu_seqlens.device.type]]
        while edges[-1] < max_length:
            edges.append(2 * edges[-1])
        history_lengths = cu_seqlens.long().diff()
        bounds = torch.tensor(edges, device=cu_seqlens.device)
        bucket = torch.bucketize(history_lengths, bounds)
        counts = torch.bincount(bucket, minlength=len(edges))
        longest = torch.zeros_like(bounds).scatter_reduce(0, bucket, history_lengths, "amax")
        by_bucket = bucket.argsort(stable=True)
        padded = longest[bucket[by_bucket]]
        first_slot = torch.empty_like(padded)
        first_slot[by_bucket] = padded.cumsum(0) - padded
        slot = first_slot[histories(cu_seqlens, total)] + positions(cu_seqlens, total)
        shapes = [(count, length) for count, length in torch.stack((counts, longest), 1).tolist()]
        lengths = history_lengths[by_bucket].split([count for count, _ in shapes])
        # A history without events takes no slot.
        filled = [number for number, (count, length) in enumerate(shapes) if count * length]
        return Buckets(slot, [shapes[each] for each in filled], [lengths[each] for each in filled])

    def pad(self, x: Tensor) -> list[Tensor]:
        """Packed [T, ...] to one zero-padded [n, L, ...] for each group."""
        sizes = [count * length for count, length in self.shapes]
        padded = x.new_zeros(sum(sizes), *x.shape[1:]).index_copy(0, self.slot, x)
        return [
            part.view(*shape, *x.shape[1:])
            for part, shape in zip(padded.split(sizes), self.shapes, strict=True)
        ]

    def unpad(self, groups: list[Tensor]) -> Tensor:
        """Groups of [n, L, ...] back to packed [T, ...]."""
        return torch.cat([each.flatten(0, 1) for each in groups]).index_select(0, self.slot)
