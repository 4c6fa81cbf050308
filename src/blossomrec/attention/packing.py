"""Where each row of a packed batch stands: its history, its position there, its block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention.memo import per_batch


@per_batch
def histories(cu_seqlens: Tensor, total: int) -> Tensor:
    """Number of the history that each of ``total`` packed rows belongs to, int64 [T]."""
    rows = torch.arange(total, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].long(), rows, right=True)


@per_batch
def positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """Position of each packed row inside its history, 0 for the oldest event, int64 [T]."""
    rows = torch.arange(total, device=cu_seqlens.device)
    return rows - cu_seqlens.long()[histories(cu_seqlens, total)]


def complete_blocks(cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Number of complete blocks of each history, int64 [B]."""
    return cu_seqlens.long().diff() // block_size


@per_batch
def first_blocks(cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Row in the block keys of each history's block 0, and their number, int64 [B+1]."""
    return torch.nn.functional.pad(complete_blocks(cu_seqlens, block_size).cumsum(0), (1, 0))


@per_batch
def block_rows(cu_seqlens: Tensor, total: int, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the complete blocks are, in the order of block keys.

    There is room for the T // block_size blocks that ``total`` rows can hold, so that the size
    needs no look at the lengths.

    Returns:
        Packed rows of each block, int64 [J, block_size]; its number inside its history, int64 [J];
        whether there is such a block, bool [J], with rows that exist where there is none.
    """
    ends = complete_blocks(cu_seqlens, block_size).cumsum(0)
    place = torch.arange(total // block_size, device=cu_seqlens.device)
    history = torch.searchsorted(ends, place, right=True)
    used = history < len(ends)
    history = torch.where(used, history, 0)
    number = place - torch.nn.functional.pad(ends, (1, 0))[history]
    start = torch.where(used, cu_seqlens.long()[history] + number * block_size, 0)
    return start[:, None] + torch.arange(block_size, device=start.device), number, used


@dataclass(frozen=True)
class Packing:
    """The geometry of a packed batch of T rows, B histories and N complete blocks.

    The *padded* layout gives every history whole blocks, the last one partly empty; it is
    allocated for the largest number of blocks that T rows in B histories can have, so that its
    size needs no look at the lengths.

    Attributes:
        block_size: events in a block.
        history, position, start, length: int64 [T], of each row its history, its position
            there, the first row and the number of rows of that history.
        first_block: int64 [T], row in the block keys of the history's block 0.
        num_blocks: int64 [T], complete blocks of the row's history.
        first_padded: int64 [T], row in the padded layout of the history's block 0.
        padded_blocks: rows of the padded layout.
    """

    block_size: int
    history: Tensor
    position: Tensor
    start: Tensor
    length: Tensor
    first_block: Tensor
    num_blocks: Tensor
    first_padded: Tensor
    padded_blocks: int

    @staticmethod
    @per_batch
    def of(cu_seqlens: Tensor, total: int, block_size: int) -> Packing:
        history = histories(cu_seqlens, total)
        starts, lengths = cu_seqlens.long()[:-1], cu_seqlens.long().diff()
        complete = lengths // block_size
        touched = (lengths + block_size - 1) // block_size
        return Packing(
            block_size=block_size,
            history=history,
            position=torch.arange(total, device=cu_seqlens.device) - starts[history],
            start=starts[history],
            length=lengths[history],
            first_block=first_blocks(cu_seqlens, block_size)[history],
            num_blocks=complete[history],
            first_padded=(touched.cumsum(0) - touched)[history],
            padded_blocks=total // block_size + len(lengths),
        )

    @property
    def block(self) -> Tensor:
        """Number of each row's own block inside its history, int64 [T]."""
        return self.position // self.block_size

    def pad(self, x: Tensor) -> Tensor:
        """Packed [T, G, d] to padded [G, padded_blocks, block_size, d], zero where no event is."""
        _, heads, size = x.shape
        padded = x.new_zeros(self.padded_blocks * self.block_size, heads, size)
        padded = padded.index_copy(0, self.first_padded * self.block_size + self.position, x)
        return padded.view(-1, self.block_size, heads, size).permute(2, 0, 1, 3).contiguous()
