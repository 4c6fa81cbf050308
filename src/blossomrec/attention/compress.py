"""From the keys of a block to one block key."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blossomrec.attention.packing import complete_blocks


def block_windows(k: Tensor, cu_seqlens: Tensor, block_size: int, window: int) -> Tensor:
    """The ``window`` keys that end where each complete block ends, zero before the history's start.

    Args:
        k: [T, G, d] packed keys.
        cu_seqlens: int32 [B+1].

    Returns:
        [N, G, window, d] for the N complete blocks, history after history.
    """
    counts = complete_blocks(cu_seqlens, block_size)
    history = torch.repeat_interleave(counts)
    number = torch.arange(len(history), device=k.device) - (counts.cumsum(0) - counts)[history]
    start = cu_seqlens.long()[history, None]
    end = start + (number[:, None] + 1) * block_size
    rows = end + torch.arange(-window, 0, device=k.device)
    inside = rows >= start
    taken = k[rows.clamp(min=0)] * inside[..., None, None]
    return taken.transpose(1, 2)


class MeanCompression(nn.Module):
    """Block key = mean of the block's own keys; no parameters."""

    def __init__(self, *, block_size: int):
        super().__init__()
        self.block_size = self.window = block_size

    def forward(self, k: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, G, d] and int32 [B+1] to [N, G, d]."""
        return self.pool(block_windows(k, cu_seqlens, self.block_size, self.window))

    def pool(self, windows: Tensor) -> Tensor:
        """[N, G, window, d] to [N, G, d]."""
        return windows.mean(2)


class MLPCompression(nn.Module):
    """Block key = two-layer perceptron over a window of keys, with a learned vector per place.

    BlossomRec (arXiv 2512.13368): window * d -> window * d -> d with ReLU, shared by the heads.
    """

    def __init__(self, *, head_dim: int, block_size: int, window: int):
        super().__init__()
        self.block_size, self.window = block_size, window
        self.places = nn.Parameter(torch.empty(window, head_dim))
        self.inner = nn.Linear(window * head_dim, window * head_dim)
        # A bias here would shift the importance of all blocks alike and never change a choice.
        self.outer = nn.Linear(window * head_dim, head_dim, bias=False)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, k: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, G, d] and int32 [B+1] to [N, G, d]."""
        return self.pool(block_windows(k, cu_seqlens, self.block_size, self.window))

    def pool(self, windows: Tensor) -> Tensor:
        """[N, G, window, d] to [N, G, d]."""
        placed = windows + self.places
        return self.outer(self.inner(placed.flatten(2)).relu())
