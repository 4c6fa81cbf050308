"""Kernels of a Transformer around the attention: lookups, norms, feed-forward, catalogue losses.

The plain form of PyTorch stands where a kernel is called, and :func:`usable` says which of the two
it is to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from blossomrec.attention.api import has_triton

if TYPE_CHECKING:
    from blossomrec.config import ModelConfig

WIDEST = 4_096
# Implementations of the attention around which nothing else is fused either.
PLAIN = ("reference", "torch")


def allowed(config: ModelConfig) -> bool:
    """Whether kernels may run at all: not where nothing but plain PyTorch is asked for."""
    return config.attention_impl not in PLAIN


def usable(x: Tensor) -> bool:
    """Whether the kernels take rows of ``x``, [..., D]."""
    if not x.is_cuda or x.shape[-1] > WIDEST or not has_triton():
        return False
    from blossomrec.attention.backends.gpu.products import DTYPES

    return x.dtype in DTYPES
