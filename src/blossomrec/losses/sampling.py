"""Items drawn from a fixed distribution by a counter, wherever they are needed.

A draw is a hash of the seed, the number of the sample and the place in it (SplitMix64: Steele, Lea
and Flood, OOPSLA 2014). So all that a stream keeps is a number, the same items are drawn on every
device, and a CUDA graph that is replayed draws others each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention.api import has_triton

# Odd constants of 64 bits, as the signed integers that torch has.
_STEP, _FIRST, _SECOND = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
# Numbers of a program of the kernel.
BLOCK = 128


class NegativeSampler:
    """Draws items with replacement from a fixed distribution; its stream can be saved and resumed.

    Args:
        num_items: size of the catalogue.
        counts: [I] training events of each item, for sampling by popularity (each count plus one,
            so that every item can be drawn); uniform without.
        uniform_share: share of the items that are drawn uniformly all the same.
        seed: start of the stream.

    Attributes:
        drawn: samples drawn so far, int64 scalar on the device of the last one.

    Example:
        >>> items, log_q = NegativeSampler(1_000, seed=7).sample(3)
        >>> items.shape, round(log_q[0].exp().item(), 6)
        (torch.Size([3]), 0.001)
    """

    def __init__(
        self, num_items: int, *, counts: Any = None, uniform_share: float = 0.0, seed: int = 0
    ):
        probabilities = torch.full((num_items,), 1 / num_items, dtype=torch.float64)
        if counts is not None:
            popular = 1 + torch.as_tensor(np.asarray(counts), dtype=torch.float64)
            probabilities = uniform_share * probabilities
            probabilities += (1 - uniform_share) * popular / popular.sum()
        # A search in the running sum has no limit on the catalogue, as torch.multinomial has.
        cumulative = probabilities.cumsum(0)
        # The last one is 1, and draws are less.
        self.cumulative = cumulative / cumulative[-1]
        self.log_q = probabilities.log().float()
        self.seed, self.drawn = torch.tensor(seed), torch.tensor(0)

    def sample(
        self, count: int, device: torch.device | str = "cpu", *, may_fuse: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``count`` items, int64, and their log-probabilities, float32, without a wait.

        Args:
            may_fuse: as of :func:`uniform`.
        """
        self._move(torch.device(device))
        draws = uniform(self.seed, self.drawn, count, may_fuse=may_fuse)
        self.drawn += 1
        items = torch.searchsorted(self.cumulative, draws, right=True)
        return items, self.log_q.index_select(0, items)

    def _move(self, device: torch.device) -> None:
        # In place ever after: a captured step knows them by where they are.
        if self.cumulative.device != device:
            for name in ("cumulative", "log_q", "seed", "drawn"):
                setattr(self, name, getattr(self, name).to(device))


def uniform(seed: Tensor, stream: Tensor, count: int, *, may_fuse: bool = True) -> Tensor:
    """Numbers in [0, 1), float64 [count]: the same on every device for the same arguments.

    Args:
        seed, stream: int64 scalars; others give numbers that have nothing to do with these.
        may_fuse: whether a kernel of a GPU may make them, which are the same.
    """
    if may_fuse and usable(seed):
        return _by_kernel(seed, stream, count)
    place = torch.arange(1, count + 1, device=seed.device)
    bits = _mixed(_mixed(_mixed(seed) + stream * _STEP) + place * _STEP)
    # As many bits as a float64 has.
    return _shifted(bits, 11).double() * 2.0**-53


def usable(seed: Tensor) -> bool:
    """Whether the kernel takes a seed."""
    return seed.is_cuda and has_triton()


def _by_kernel(seed: Tensor, stream: Tensor, count: int) -> Tensor:
    """:func:`uniform` by one kernel, where plain PyTorch takes four dozen."""
    from blossomrec.models.fused.kernels.uniform import uniform_kernel

    out = torch.empty(count, dtype=torch.float64, device=seed.device)
    constants: dict[str, Any] = {"STEP": _STEP, "FIRST": _FIRST, "SECOND": _SECOND, "BLOCK": BLOCK}
    uniform_kernel[(-(-count // BLOCK),)](seed, stream, out, count, **constants)
    return out


def _mixed(bits: Tensor) -> Tensor:
    """Every bit depends on all bits of the int64s given; products wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right as if there were no sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
