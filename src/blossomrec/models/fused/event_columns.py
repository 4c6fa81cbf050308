# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""What a model sees of events besides items, as the rows of a product, by one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models.fused.kernels.event_columns import event_columns_kernel

if TYPE_CHECKING:
    from blossomrec.models.event_inputs import EventInputs, Seen

# Numbers of a tile that a program holds in registers.
TILE = 4_096
# As many columns as a program holds of a row.
WIDEST = 2_048


def event_columns(
    inputs: EventInputs, seen: Seen, bounds: Tensor, width: int, dtype: torch.dtype
) -> Tensor:
    """Rows of zeros, ones and numbers, [n, width], as ``inputs`` lays out its embeddings.

    Args:
        seen: of n events, on a GPU.
        bounds: int64 [any number], the smallest gap of each bucket from 1 on.
    """
    given = [None if each is None else each.contiguous() for each in seen]
    total = len(seen.any)
    out = inputs.embeddings.weight.new_empty(total, width, dtype=dtype)
    block = max(16, next_power_of_2(width))
    rows = max(1, TILE // block)
    starts, numbers = inputs.starts, len(inputs.number_columns)
    if total:
        event_columns_kernel[(cdiv(total, rows),)](
            *given,
            bounds,
            inputs.offsets,
            inputs.few_columns,
            inputs.number_columns,
            inputs.scales,
            out,
            total,
            BOUNDS=len(bounds),
            BOUND_BLOCK=next_power_of_2(len(bounds)),
            HAS_GAP=inputs.gap,
            HAS_CLOCK=inputs.clock,
            HAS_KINDS=inputs.kinds is not None,
            CLOCK=starts[1],
            KINDS=starts[2],
            FEW=len(inputs.few_columns),
            NUMBERS=numbers,
            FIRST_NUMBER=starts[-1],
            CONTEXT=0 if seen.context is None else seen.context.shape[1],
            USERS=inputs.users,
            FIRST_USER=starts[-1] + numbers,
            WIDTH=width,
            ROWS=rows,
            BLOCK=block,
        )
    return out
