"""What a layer does around the operation, where the C++ operator does it better."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu import operators
from blossomrec.attention.backends.cpu.compression import pooled_windows
from blossomrec.attention.backends.cpu.step import LayerExtension
from blossomrec.attention.backends.parts import Parts
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.memo import per_batch
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import cos_sin
from blossomrec.attention.selector import Sample, selector_loss
from blossomrec.attention.spec import BlossomSpec


class CpuParts(Parts):
    """Rotation and distillation in one pass, and new events of all users in one call."""

    def rotated(self, q, k, cu_seqlens, spec, rotary):
        if rotary is None:
            rotary = _angles(cu_seqlens, len(q), q.shape[2], spec.rotary_share)
        form = rotary.float(), False, q.shape[1] // k.shape[1], spec.block_size
        return operators.rotate(q, *form), operators.rotate(k, *form)

    def keys_to_choose_by(
        self,
        compression: MeanCompression | MLPCompression,
        k: Tensor,
        cu_seqlens: Tensor,
        spec: BlossomSpec,
    ) -> Tensor:
        if torch.compiler.is_compiling() or isinstance(compression, MeanCompression):
            return self.block_keys(compression, k, cu_seqlens)
        places, windows = _windows_to_choose(cu_seqlens, len(k), compression.window, spec)
        found = pooled_windows(compression, k, windows)
        keys = k.new_zeros(len(k) // spec.block_size, *k.shape[1:])
        return keys.index_copy(0, places, found)

    def selector_loss(
        self, q: Tensor, k: Tensor, block_keys: Tensor, cu_seqlens: Tensor, **given: Any
    ) -> Tensor:
        return selector_loss(q, k, block_keys, cu_seqlens, **given, shares=block_shares)

    def extension(self, weights, output, heads, compression, spec):
        return LayerExtension(weights, output, heads, compression, spec)


@per_batch
def _angles(cu_seqlens: Tensor, total: int, size: int, share: float) -> Tensor:
    """Cosine and sine of the angles of all positions, [T, 2, pairs]."""
    return cos_sin(positions(cu_seqlens, total), size, share)


@per_batch
def _windows_to_choose(
    cu_seqlens: Tensor, total: int, window: int, spec: BlossomSpec
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The blocks that an event can choose among more than are selected, and their windows.

    A perceptron for every block costs more than dense attention to a few blocks does.

    Returns:
        Their rows among the block keys, int64 [N], the first block of each history first; and the
        packed rows of the events in their windows, of those int64 [n, block_size], for nothing is
        before them, and of the others [N - n, window], ``total`` before the start of the history.
    """
    size, lengths = spec.block_size, cu_seqlens.long().diff()
    blocks = lengths // size
    # The own block of the last event is none that an event chooses.
    chosen_from = (lengths - 1).clamp(min=0) // size if spec.causal else blocks
    chosen_from = torch.where(chosen_from > spec.top_n, chosen_from, 0)
    history = torch.arange(len(blocks)).repeat_interleave(chosen_from)
    number = torch.arange(len(history)) - (chosen_from.cumsum(0) - chosen_from)[history]
    order = (number > 0).to(torch.uint8).argsort(stable=True)
    history, number = history[order], number[order]
    event = (number * size + size - window)[:, None] + torch.arange(window)
    rows = torch.where(event < 0, total, cu_seqlens.long()[history, None] + event)
    first = int((chosen_from > 0).sum())
    return (blocks.cumsum(0) - blocks)[history] + number, (rows[:first, -size:], rows[first:])


def block_shares(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, sample: Sample, spec: BlossomSpec
) -> Tensor:
    """See :func:`blossomrec.attention.selector.block_shares`."""
    bounds = cu_seqlens.to(torch.int32).contiguous()
    form = (sample.eligible.shape[-1], spec.block_size, spec.causal)
    return operators.block_shares(q, k, bounds, sample.rows, *form)
