"""One more event of many users at once, over states kept in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.api import kernels_take
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.paged import eager
from blossomrec.attention.paged.graph import StepGraph
from blossomrec.attention.paged.pages import NOBODY, OutOfPagesError, PagedLayer, Step
from blossomrec.attention.paged.states import PagedStates

__all__ = ["OutOfPagesError", "PagedLayer", "PagedStates", "Step", "StepGraph", "append", "attend"]


def append(
    k: Tensor,
    v: Tensor,
    layer: PagedLayer,
    step: Step,
    compress: MeanCompression | MLPCompression,
    *,
    impl: str = "auto",
) -> None:
    """Write the events' keys and values to their pages, and the keys of blocks now complete.

    Args:
        k, v: [B, G, d], rotated keys and values.
        layer, step: where they go.
        compress: makes block keys.
        impl: see :func:`blossomrec.attention.blossom_attention`.
    """
    if _by_kernels(k, k, layer, impl):
        from blossomrec.attention.triton import incremental

        mean = isinstance(compress, MeanCompression)
        incremental.append(k, v, layer, step, mean=mean)
        if mean:
            return
    else:
        eager.append(k, v, layer, step)
    if len(step.closing):
        closing = step.closing.long()
        block_keys = compress.pool(_windows(layer, step, closing)).to(layer.block_keys.dtype)
        complete = step.position[closing] % layer.block_size == layer.block_size - 1
        # A step of fixed size computes a key for every event.
        target = torch.where(complete, step.page[closing], NOBODY)
        layer.block_keys.index_copy_(0, target.long(), block_keys)


def attend(
    q: Tensor,
    gates: Tensor,
    layer: PagedLayer,
    step: Step,
    *,
    top_n: int,
    window: int,
    sinks: int,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Output of the events appended last, as ``blossom_attention`` gives it for whole histories.

    Args:
        q: [B, H, d] rotated queries.
        gates: [B, H, 2] weights of the long-term and the short-term path.
        layer, step: with the events in them.
        top_n, window, sinks, impl: see :func:`blossomrec.attention.blossom_attention`.

    Returns:
        [B, H, d] in the type of ``q``, and the selected blocks, int32 [B, G, top_n], rising with
        -1 last, numbered from the start of the whole history.
    """
    form = {"top_n": top_n, "window": window, "sinks": sinks}
    if _by_kernels(q, layer.block_keys, layer, impl):
        from blossomrec.attention.triton import incremental

        return incremental.attend(q, gates, layer, step, **form)
    return eager.attend(q, gates, layer, step, **form)


def _by_kernels(q: Tensor, k: Tensor, layer: PagedLayer, impl: str) -> bool:
    if impl == "auto":
        return kernels_take(q, k, layer.block_size)
    return impl == "triton"


def _windows(layer: PagedLayer, step: Step, closing: Tensor) -> Tensor:
    """Keys that the block keys of some events' blocks are made of, [C, G, reach, d]."""
    user, position, first, _ = step.rows.index_select(1, closing).long()
    number = position // layer.block_size
    back = torch.arange(1 - layer.reach // layer.block_size, 1, device=number.device)
    number = number[:, None] + back
    # What is held reaches as far as the open window does: only before position 0 there is nothing.
    column = (number - first[:, None]).clamp(min=0)
    pages = layer.pages[step.table[user[:, None], column].long()]  # [C, blocks, G, S, 2d]
    keys = pages[..., : layer.block_keys.shape[-1]]
    keys = torch.where((number >= 0)[:, :, None, None, None], keys, 0)
    return keys.transpose(1, 2).flatten(2, 3)
