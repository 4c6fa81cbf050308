"""Both paths where chosen blocks are fetched along the inverse lists, once for many events.

The operators of this folder fetch, event by event, the blocks that each has chosen: keys and values
of 16 events for a few queries. The other way round a block is fetched once, and the queries come in
turn to it, R heads of one event for each of its choices; what they get from the block is written
down, [T, G, n, R, d] in 16 bits, and added up by a kernel that goes through the events. The larger
the heads, the less has to move that way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blossomrec.attention.backends.cuda.compiler import WARP
from blossomrec.attention.backends.cuda.launch import (
    BLOCK_SIZE,
    CHUNK,
    SHORT_LISTS,
    STARTS_OF_A_WARP,
    Listed,
)

# q, k, v [T, heads, d] and gates, then keys and values block by block.
Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
# What scores are multiplied by; strides of q, of k and of v.
Sizes = tuple[float | int, ...]


class Lists(NamedTuple):
    """The choices of all events by the block that they chose, list after list.

    order: int64 [T * G * n], places in the flattened selection. sorted: the list of each. starts:
    int32 [lists + 1], where lists begin; behind the last one come choices of no block.
    """

    order: Tensor
    sorted: Tensor
    starts: Tensor

    @staticmethod
    def of(kernels: Listed, selected: Tensor, table: Tensor) -> Lists:
        """Of a selection, int32 [T, G, n]."""
        lists = len(table) * selected.shape[1]
        short = lists < SHORT_LISTS
        numbers = torch.empty_like(selected, dtype=torch.int16 if short else torch.int32)
        kernels.choose_lists(lists, selected, table, numbers, len(table))
        # Sorted as they are told apart by place, each list is in the order of its events.
        ordered, order = numbers.flatten().sort(stable=True)
        starts, entries = selected.new_empty(lists + 1), len(order)
        warps = entries // STARTS_OF_A_WARP + 1
        kernels.list_starts(warps, ordered, starts, entries, lists)
        return Lists(order, ordered, starts)


def forward(
    kernels: Listed,
    rows: Rows,
    selected: Tensor,
    table: Tensor,
    out: Tensor,
    lse: Tensor,
    sizes: Sizes,
) -> None:
    """Fill ``out`` and ``lse``, as of ``operators.attend``."""
    q, _, _, _, packed = rows
    lists, count = Lists.of(kernels, selected, table), len(table) * selected.shape[1]
    means, logs = _of_choices(q, selected)
    entries = len(lists.order)
    chunks = -(-entries // CHUNK)
    kernels.list_forward(chunks, q, packed, table, *lists, means, logs, entries, count, *sizes[:3])
    kernels.forward(count, *rows, means, logs, table, out, lse, len(q), *sizes)


def backward(
    kernels: Listed,
    rows: Rows,
    blocks: tuple[Tensor, Tensor],
    of_out: tuple[Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor, Tensor],
    sizes: Sizes,
) -> None:
    """Fill the gradients of q, k, v and gates.

    Args:
        blocks: the selection, and the table of tiles.
        of_out: the output, its lse and its gradient.
    """
    (q, _, _, gates, packed), (selected, table), (out, lse, grad) = rows, blocks, of_out
    grad_q, grad_k, grad_v, grad_gates = gradients
    total, heads, size = q.shape
    count = len(table) * selected.shape[1]
    near, shifts = torch.empty_like(lse), torch.empty_like(lse)
    kernels.backward_queries(
        count, *rows, table, out, lse, grad, grad_q, near, shifts, total, *sizes
    )
    order, ordered, starts = Lists.of(kernels, selected, table)
    entries = len(order)
    chunks = -(-entries // CHUNK)
    sums = q.new_empty(chunks, 2, BLOCK_SIZE, size, dtype=torch.float32)
    parts, slopes = _of_choices(q, selected)
    given, found = (q, gates, packed, table, lse, shifts, grad), (sums, parts, slopes)
    kernels.list_sums(chunks, *given, order, starts, ordered, *found, entries, count, *sizes[:3])
    kernels.backward_keys(count, *given, grad_k, grad_v, order, starts, *found, total, *sizes[:3])
    warps = -(-total * heads * size // (4 * WARP))
    kernels.add_choices(warps, selected, parts, slopes, near, grad_q, grad_gates, total * heads)


def _of_choices(q: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
    """Room for a row and for a number of each choice and head."""
    rows = q.new_empty(*selected.shape, q.shape[1] // selected.shape[1], q.shape[2])
    return rows, rows.new_empty(rows.shape[:-1], dtype=torch.float32)
