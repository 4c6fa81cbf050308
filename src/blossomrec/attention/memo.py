"""Results that depend on the shape of a packed batch alone, computed once for all layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Result = TypeVar("Result")


def per_batch(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keep the results of ``function(cu_seqlens, *others)`` as long as ``cu_seqlens`` lives.

    A tensor written to since is computed anew, and so is one first met in inference mode: what is
    made there cannot take part in a backward pass. A CUDA graph that is being captured computes all
    anew as well: when replayed, it must read the lengths again.
    """
    known = WeakTensorKeyDictionary()

    @functools.wraps(function)
    def remembered(cu_seqlens: Tensor, *others: object) -> Result:
        if cu_seqlens.is_inference() or _capturing(cu_seqlens):
            return function(cu_seqlens, *others)
        results: dict[tuple[object, ...], Result] | None = known.get(cu_seqlens)
        if results is None:
            results = known[cu_seqlens] = {}
        key = (cu_seqlens._version, torch.is_inference_mode_enabled(), *others)
        if key not in results:
            results[key] = function(cu_seqlens, *others)
        return results[key]

    return remembered


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
