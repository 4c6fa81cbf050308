# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""The events that the selector is distilled from, drawn on the device, which has the lengths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.kernels.sampling import choices_kernel, draw_kernel
from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.attention.spec import BlossomSpec

# Histories of one program.
HISTORIES = 128


class SampledEvents(NamedTuple):
    """Events in runs of one history each, int64.

    rows: packed rows, [X, C]; owns: number of the block that each stands in; numbers: complete
    blocks of its history; starts: first packed row of each run's history, [X]; firsts: row of its
    first block key.
    """

    rows: Tensor
    owns: Tensor
    numbers: Tensor
    starts: Tensor
    firsts: Tensor


def draw_samples(
    rows: Tensor,
    cu_seqlens: Tensor,
    first_blocks: Tensor,
    spec: BlossomSpec,
    runs: int,
    count: int,
) -> SampledEvents:
    """``runs`` times ``count`` samples of events with more than ``top_n`` eligible blocks.

    Where there is none, all are of row 0 in a history without blocks.

    Args:
        rows: int64 [N], rising: rows that samples are drawn from; T, which is none, may fill up
            the end.
        cu_seqlens: int32 [B+1], up to T.
        first_blocks: int64 [B+1], row of each history's first block key.
        spec: block_size, top_n and causal.
    """
    histories, steps = len(cu_seqlens) - 1, max(len(rows), len(cu_seqlens)).bit_length()
    lows, counts = rows.new_empty(2, histories).unbind()
    choices_kernel[(cdiv(histories, HISTORIES),)](
        rows,
        cu_seqlens,
        lows,
        counts,
        len(rows),
        histories,
        S=spec.block_size,
        TOP_N=spec.top_n,
        CAUSAL=spec.causal,
        HISTORIES=HISTORIES,
        STEPS=steps,
    )
    # Of 32 bits, they cannot be rounded up to the next stratum.
    drawn = torch.rand(runs, count + 1, device=rows.device)
    of_samples, of_runs = rows.new_empty(3, runs, count), rows.new_empty(2, runs)
    samples = SampledEvents(*of_samples.unbind(), *of_runs.unbind())
    draw_kernel[(runs,)](
        drawn,
        rows,
        cu_seqlens,
        first_blocks,
        lows,
        counts,
        counts.cumsum(0),
        *samples,
        histories,
        count,
        S=spec.block_size,
        PLACES=next_power_of_2(count),
        STEPS=steps,
        num_warps=1,
    )
    return samples
