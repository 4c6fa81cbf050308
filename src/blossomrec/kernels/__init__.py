"""Triton kernels of what stands around the attention: few passes over memory, few launches.

Each module holds one operation: its kernels, forward and backward, and the function that launches
them. The plain form of PyTorch stands where the function is called, and :func:`usable` says which
of the two it is to be.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Numbers that a program has in its registers at a time.
TILE_ELEMENTS = 1_024
# Programs that go through all tiles and keep sums: enough for any GPU, and always as many, so that
# sums have the same order everywhere.
PROGRAMS = 792
WIDEST = 4_096


def usable(x: Tensor) -> bool:
    """Whether the kernels take rows of ``x``, [..., D]."""
    return x.is_cuda and x.dtype in DTYPES and x.shape[-1] <= WIDEST and _has_triton()


def place_rows(cu_seqlens: Tensor) -> bool:
    """Whether kernels look up where the rows of packed histories stand."""
    return cu_seqlens.is_cuda and len(cu_seqlens) > 1 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


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
