# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false
"""One more event of many users, over pages of one block each: how the kernels are launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.kernels.step import (
    append_kernel,
    span_kernel,
    step_kernel,
)
from blossomrec.attention.backends.gpu.launch import Shape
from blossomrec.attention.backends.gpu.products import next_power_of_2
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state import PagedLayer, Step

# Blocks that one program of the first stage of the selection scores.
SPAN = 256


def append(k: Tensor, v: Tensor, layer: PagedLayer, step: Step, *, mean: bool) -> None:
    """Write keys and values [B, G, d]; with ``mean``, the keys of blocks now complete as well."""
    users, groups, size = k.shape
    append_kernel[(users * groups,)](
        k,
        v,
        layer.pages,
        layer.block_keys,
        step.table,
        step.rows,
        users,
        step.table.shape[1],
        *k.stride()[:2],
        *v.stride()[:2],
        G=groups,
        D=size,
        S=layer.layout.block_size,
        MEAN=mean,
        **Shape(1, 1).options(),
    )


def attend(
    q: Tensor,
    gates: Tensor,
    layer: PagedLayer,
    step: Step,
    spec: BlossomSpec,
) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.state.eager.attend`."""
    (users, heads, size), groups = q.shape, layer.pages.shape[1]
    top_n = spec.top_n
    width, device = step.table.shape[1], q.device
    # Rounded up, so that few forms of the merge are ever compiled.
    spans = next_power_of_2(max(1, -(-int(step.columns.max()) // SPAN)))
    form = {"G": groups, "R": heads // groups, "D": size, "S": layer.layout.block_size, "N": top_n}
    best = torch.empty(users * groups, spans, top_n, device=device)
    candidates = torch.empty_like(best, dtype=torch.int32)
    given = (step.table, step.rows, best, candidates)
    span_kernel[(spans, users * groups)](
        q,
        layer.block_keys,
        *given,
        users,
        width,
        *q.stride()[:2],
        **form,
        SPAN=SPAN,
        **span_shape(size).options(),
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    selected = torch.empty(users, groups, top_n, dtype=torch.int32, device=device)
    step_kernel[(users * groups,)](
        q,
        gates.contiguous(),
        layer.pages,
        *given,
        out,
        selected,
        users,
        width,
        math.log2(math.e) / math.sqrt(size),
        *q.stride()[:2],
        **form,
        UNION=spec.is_union,
        **pattern_constants(spec.window, spec.sinks, width * layer.layout.block_size),
        SPAN=SPAN,
        SPANS=spans,
        MERGED=next_power_of_2(spans * top_n),
        PLACES=next_power_of_2(top_n + 1),
        PRECISION="ieee" if torch.float32 in (q.dtype, layer.pages.dtype) else "tf32",
        **step_shape(size, layer.layout.block_size).options(),
    )
    return out, selected


def span_shape(size: int) -> Shape:
    """Of the first stage: 64 numbers of block keys a thread."""
    return Shape(max(1, SPAN * size // (64 * 32)), 1)


def step_shape(size: int, block_size: int) -> Shape:
    """Of the second stage: 32 numbers of keys and as many of values a thread."""
    return Shape(max(1, size * block_size // 1024), 2)


def pattern_constants(window: int, sinks: int, longest: int) -> dict[str, int]:
    """The short-term path over the longest history held: near distances, powers of two, sinks."""
    first_far = (window - 1).bit_length()
    return {
        "WINDOW": window,
        "SINKS": sinks,
        "FIRST_FAR": first_far,
        "FAR": max(0, (longest - 1).bit_length() - first_far),
    }
