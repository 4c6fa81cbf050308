"""Results that depend on the shape of a packed batch alone, computed once for all layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Result = TypeVar("Result")


# Made inside of a CUDA graph that is being captured: what is known of them belongs to it alone.
_of_one_graph: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def per_batch(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keep the results of ``function(cu_seqlens, *others)`` as long as ``cu_seqlens`` lives.

    A tensor written to since is computed anew, and so is one first met in inference mode: what is
    made there cannot take part in a backward pass. A CUDA graph that is being captured computes all
    anew as well, when replayed it must read the lengths again; it keeps what it knows of a tensor
    of :func:`of_one_graph`.
    """
    known = WeakTensorKeyDictionary()

    @functools.wraps(function)
    def remembered(cu_seqlens: Tensor, *others: object) -> Result:
        if cu_seqlens.is_inference() or not _may_be_kept(cu_seqlens):
            return function(cu_seqlens, *others)
        entry: tuple[int, dict[tuple[object, ...], Result]] | None = known.get(cu_seqlens)
        if entry is None or entry[0] != cu_seqlens._version:
            # What was known of other lengths is let go.
            entry = known[cu_seqlens] = (cu_seqlens._version, {})
        results = entry[1]
        key = (torch.is_inference_mode_enabled(), *others)
        if key not in results:
            results[key] = function(cu_seqlens, *others)
        return results[key]

    return remembered


def of_one_graph(cu_seqlens: Tensor) -> Tensor:
    """The same lengths; a copy of them in a CUDA graph that is being captured.

    Nobody outside of the graph has the copy, so that its layers share what they know of it.
    """
    if not _capturing(cu_seqlens):
        return cu_seqlens
    copy = cu_seqlens.clone()
    _of_one_graph[copy] = True
    return copy


def _may_be_kept(cu_seqlens: Tensor) -> bool:
    return not _capturing(cu_seqlens) or cu_seqlens in _of_one_graph


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
