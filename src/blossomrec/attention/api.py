"""The one door to Blossom attention: checks its arguments and picks an implementation."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from blossomrec.attention import eager, native, reference


def _triton_attention(*tensors: Tensor, **form) -> tuple[Tensor, Tensor]:
    # Imported when called: the kernels need a package that not every machine has.
    from blossomrec.attention import triton

    return triton.blossom_attention(*tensors, **form)


def _cuda_attention(*tensors: Tensor, **form) -> tuple[Tensor, Tensor]:
    from blossomrec.attention import cuda

    return cuda.blossom_attention(*tensors, **form)


IMPLEMENTATIONS = {
    "reference": reference.blossom_attention,
    "torch": eager.blossom_attention,
    "native": native.blossom_attention,
    "triton": _triton_attention,
    "cuda": _cuda_attention,
}


def blossom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_keys: Tensor,
    gates: Tensor,
    cu_seqlens: Tensor,
    *,
    block_size: int = 16,
    top_n: int = 4,
    window: int = 8,
    sinks: int = 0,
    causal: bool = True,
    selected: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gated sum of attention to selected blocks and to a power-law pattern of recent events.

    Long term: one softmax over the event's own block (up to itself when causal) and the ``top_n``
    eligible blocks with the highest importance, the mean of the group's queries times the block
    key. Short term: one softmax over the events at a distance below ``window`` or a power of two,
    and the sinks. Both use the scale 1/sqrt(d). After BlossomRec (arXiv 2512.13368).

    Args:
        q: [T, H, d] queries of packed histories, rotary embedding already applied.
        k, v: [T, G, d] keys and values; G divides H, and H / G query heads share a key/value head.
        block_keys: [N or more, G, d] keys of all N complete blocks, history after history; further
            rows are not used.
        gates: [T, H, 2] weights of the long-term and the short-term path.
        cu_seqlens: int32 [B+1], rising from 0 to T: where each history starts.
        block_size: events in a block.
        top_n: blocks selected for each event and key/value head.
        window: distances below it are always seen.
        sinks: how many first (causal) or last (bidirectional) events everyone sees.
        causal: an event sees no later event; otherwise both directions are seen.
        selected: int32 [T, G, top_n], distinct eligible block numbers inside the history, -1 for
            none: use these instead of selecting.
        impl: "auto", "reference", "torch", "native", "triton" or "cuda". An explicit choice never
            falls back (where there is no event, nobody computes anything); "auto" is the fastest
            that takes these sizes and types: on an NVIDIA GPU "cuda" for 16 bits and "triton" for
            more, on a CPU "native" for float32 where it can be compiled, else "torch".

    Returns:
        The output [T, H, d] in the type of ``q``, and the selected blocks, int32 [T, G, top_n],
        rising with -1 last. No gradient flows to ``block_keys``.

    Raises:
        ValueError: an argument has a wrong shape or value; the message names it.
    """
    _check(q, k, v, block_keys, gates, cu_seqlens, selected, top_n)
    for name, value, low in (
        ("block_size", block_size, 1),
        ("top_n", top_n, 1),
        ("window", window, 1),
        ("sinks", sinks, 0),
    ):
        if value < low:
            raise ValueError(f"{name} is {value}: it must be at least {low}")
    if impl == "auto":
        sizes = {"block_size": block_size, "top_n": top_n, "window": window, "sinks": sinks}
        impl = fastest(q, k, gates, sizes)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}: choose one of auto, {', '.join(IMPLEMENTATIONS)}")
    # Types are chosen inside: scores and selection are float32 whatever the layers around use.
    with torch.autocast(q.device.type, enabled=False):
        if not len(q):
            return q * gates[..., :1], q.new_empty(0, k.shape[1], top_n, dtype=torch.int32)
        return IMPLEMENTATIONS[impl](
            q,
            k,
            v,
            block_keys,
            gates,
            cu_seqlens,
            block_size=block_size,
            top_n=top_n,
            window=window,
            sinks=sinks,
            causal=causal,
            selected=selected,
        )


def fastest(q: Tensor, k: Tensor, gates: Tensor, sizes: dict[str, int]) -> str:
    """The implementation that "auto" stands for.

    q: [T, H, d], k: [T, G, d], gates: [T, H, 2], on their device and of their type; sizes: block
    size, top n, window and sinks by name.
    """
    block_size = sizes["block_size"]
    if q.is_cuda:
        from blossomrec.attention.cuda import launch

        if launch.available() and not launch.unsupported(q, k, gates, **sizes):
            return "cuda"
    if kernels_take(q, k, block_size):
        return "triton"
    return "native" if native.wanted("auto", q, k, block_size) else "torch"


def kernels_take(q: Tensor, k: Tensor, block_size: int) -> bool:
    """Whether the Triton kernels take queries [T, H, d] and keys [T, G, d] where they are."""
    return q.is_cuda and not kernels_refuse(q, k, block_size)


def kernels_refuse(q: Tensor, k: Tensor, block_size: int) -> str:
    """Why, on a GPU, the Triton kernels do not take tensors like these; empty where they do."""
    if not _has_triton():
        return "Triton is not installed"
    from blossomrec.attention.triton.launch import unsupported

    return unsupported(q, k, block_size)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _check(q, k, v, block_keys, gates, cu_seqlens, selected, top_n) -> None:
    if q.dim() != 3 or k.dim() != 3:
        raise ValueError(f"q is {list(q.shape)}, k {list(k.shape)}: [T, H, d] and [T, G, d] needed")
    total, heads, size = q.shape
    groups = k.shape[1]
    if not groups or heads % groups:
        raise ValueError(f"q has {heads} heads, k has {groups}: G must divide H")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 1 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}: integers [B+1] needed"
        )
    expected = {
        "k": (k, (total, groups, size)),
        "v": (v, (total, groups, size)),
        "block_keys": (block_keys, (len(block_keys), groups, size)),
        "gates": (gates, (total, heads, 2)),
    }
    if selected is not None:
        expected["selected"] = (selected, (total, groups, top_n))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}: {list(shape)} is needed")
