"""From the keys of a block to one block key.

The number of complete blocks is not known before a look at the lengths, for which a GPU would have
to be waited for: the results have J = T // block_size rows, as many blocks as T events can hold,
and those in excess are not to be used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from blossomrec.attention.packing import block_rows
from blossomrec.attention.spec import BlossomSpec


def keys_of_blocks(k: Tensor, cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Packed keys [T, G, d] by complete block, [J, block_size, G, d]; zero where no block is."""
    rows, _, used = block_rows(cu_seqlens, len(k), block_size)
    return k.index_select(0, rows.flatten()).unflatten(0, rows.shape) * used[:, None, None, None]


def build_compression(spec: BlossomSpec, head_dim: int) -> MeanCompression | MLPCompression:
    """The module that makes the block keys of a layer."""
    if not spec.learns_compression:
        return MeanCompression(block_size=spec.block_size)
    return MLPCompression(
        head_dim=head_dim, block_size=spec.block_size, window=spec.compress_window
    )


class MeanCompression(nn.Module):
    """Mean pooling: block key = mean of the block's own keys; no parameters."""

    def __init__(self, *, block_size: int):
        super().__init__()
        self.block_size = self.window = block_size

    def forward(self, k: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, G, d] and int32 [B+1] to [J, G, d]."""
        return keys_of_blocks(k, cu_seqlens, self.block_size).mean(1)

    def pool(self, windows: Tensor) -> Tensor:
        """[N, G, window, d] to [N, G, d]."""
        return windows.mean(2)


class MLPCompression(nn.Module):
    """Block key = two-layer perceptron over a window of keys, with a learned vector per position.

    BlossomRec (arXiv 2512.13368): window * d -> window * d -> d with ReLU, shared by the heads. The
    window is a whole number of blocks and ends where the block ends; keys before the start of the
    history count as zero.
    """

    def __init__(self, *, head_dim: int, block_size: int, window: int):
        super().__init__()
        if window % block_size:
            raise ValueError(f"window is {window}: it must be a multiple of {block_size}")
        self.block_size, self.window = block_size, window
        self.places = nn.Parameter(torch.empty(window, head_dim))
        self.inner = nn.Linear(window * head_dim, window * head_dim)
        # A bias here would shift the importance of all blocks alike and never change a choice.
        self.outer = nn.Linear(window * head_dim, head_dim, bias=False)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, k: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, G, d] and int32 [B+1] to [J, G, d]."""
        # The vectors of the positions are the same for every block: they join the bias.
        hidden = self.inner(self.places.flatten())
        return self.outer(self._shifted_sum(hidden, k, cu_seqlens).relu())

    def _shifted_sum(self, hidden: Tensor, k: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``hidden`` and the products of each window's keys, [J, G, window * d].

        A product is a sum over the blocks of a window, so windows need not be copied out: each
        block passes once through each part of the weights, and the results are added shifted.
        """
        _, number, _ = block_rows(cu_seqlens, len(k), self.block_size)
        # [J, G, block_size * d]
        blocks = keys_of_blocks(k, cu_seqlens, self.block_size).transpose(1, 2).flatten(2)
        parts = self.inner.weight.split(blocks.shape[-1], dim=1)
        for back, weight in enumerate(reversed(parts)):
            part = linear(blocks, weight)
            if back:
                # The block ``back`` before, where the history has one.
                shifted = pad(part, (0, 0, 0, 0, back, 0))[: len(part)]
                part = shifted * (number >= back)[:, None, None]
            hidden = hidden + part
        return hidden

    def pool(self, windows: Tensor) -> Tensor:
        """[N, G, window, d] to [N, G, d]."""
        placed = windows + self.places
        return self.outer(self.inner(placed.flatten(2)).relu())
