"""Types and matrix products of the kernels around the attention, and how their programs are cut."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Numbers that a program has in its registers at a time.
TILE_ELEMENTS = 1_024
# Programs that go through all tiles and keep sums: enough for any GPU, and always as many, so that
# sums have the same order everywhere.
PROGRAMS = 792


def cdiv(number: int, by: int) -> int:
    """How many pieces of a size there are, the last of which may be smaller.

    As ``triton.cdiv``, which some versions say to give what a kernel knows when it is compiled.
    """
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The least that is not smaller; likewise of Triton."""
    return 1 << max(0, number - 1).bit_length()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Type of the factors of a product: that of autocast where it is on, else that of ``x``."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product summed and returned in float32 or better."""
    exact = torch.promote_types(a.dtype, torch.float32)
    if a.dtype == exact:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=exact)
    return a.to(exact) @ b.to(exact)
