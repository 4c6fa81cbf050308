"""The one door to Blossom attention: checks its arguments and picks an implementation."""

from __future__ import annotations

from dataclasses import astuple
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from blossomrec.attention.backends import Backend
from blossomrec.attention.backends.tracing import looked_up
from blossomrec.attention.spec import BlossomSpec, Heads, Inputs, Target

FOLDER = "blossomrec.attention.backends"
# Implementations of the operation by name; each module has ``attend`` and ``unsupported``.
MODULES = {
    "reference": "blossomrec.attention.reference",
    "torch": f"{FOLDER}.torch",
    "cpu": f"{FOLDER}.cpu",
    "triton": f"{FOLDER}.triton",
    "cuda": f"{FOLDER}.cuda",
}
IMPLEMENTATIONS = tuple(MODULES)
# What surrounds the operation in a layer, by class.
PARTS = {
    "Parts": f"{FOLDER}.parts",
    "CpuParts": f"{FOLDER}.cpu.parts",
    "GpuParts": f"{FOLDER}.gpu.parts",
}
# Those that "auto" tries on each kind of device; the last takes everything.
FASTEST = {"cuda": ("cuda", "triton", "torch"), "cpu": ("cpu", "torch")}

_loaded: dict[str, Backend] = {}


def blossom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_keys: Tensor,
    gates: Tensor,
    cu_seqlens: Tensor,
    spec: BlossomSpec | None = None,
    *,
    selected: Tensor | None = None,
    impl: str | Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Sparse attention: selected blocks, fused with a power-law pattern of recent events.

    Long term: one softmax over the event's own block (up to itself when causal) and the ``top_n``
    eligible blocks with the highest importance, the mean of the group's queries times the block
    key. Short term: one softmax over the events at a distance below ``window`` or a power of two,
    and the sinks. Both use the scale 1/sqrt(d); their results are weighed by the gates and added.
    After BlossomRec (arXiv 2512.13368). With ``fusion="union"`` one softmax is over the keys of
    either path, each once, and a bias is added to the scaled scores of the short-term path's.

    Args:
        q: [T, H, d] queries of packed histories, rotary embedding already applied.
        k, v: [T, G, d] keys and values; G divides H, and H / G query heads share a key/value head.
        block_keys: [N or more, G, d] keys of all N complete blocks, history after history; further
            rows are not used.
        gates: [T, H, 2] weights of the long-term and the short-term path; with
            ``fusion="union"`` [T, H, 1], the bias.
        cu_seqlens: int32 [B+1], rising from 0 to T: where each history starts.
        spec: the definition; the defaults of :class:`BlossomSpec` where it is None.
        selected: int32 [T, G, top_n], distinct eligible block numbers inside the history, -1 for
            none: use these instead of selecting.
        impl: "auto", "reference", "torch", "cpu", "triton" or "cuda", or what :func:`resolve` gave.
            An explicit choice never falls back (where there is no event, nobody computes anything);
            "auto" is the fastest that takes these sizes and types: on an NVIDIA GPU "cuda" for 16
            bits and "triton" for more, on a CPU "cpu" for float32 where it can be compiled, else
            "torch".

    Returns:
        The output [T, H, d] in the type of ``q``, and the selected blocks, int32 [T, G, top_n],
        rising with -1 last. No gradient flows to ``block_keys``.

    Raises:
        ValueError: an argument has a wrong shape or value; the message names it.

    Example:
        >>> q, k, v = (torch.randn(40, heads, 16) for heads in (8, 2, 2))
        >>> gates, bounds = torch.rand(40, 8, 2), torch.tensor([0, 40], dtype=torch.int32)
        >>> out, selected = blossom_attention(q, k, v, k[15::16], gates, bounds)
        >>> out.shape, selected.shape
        (torch.Size([40, 8, 16]), torch.Size([40, 2, 4]))
    """
    spec = spec or BlossomSpec()
    heads = _check(q, k, v, block_keys, gates, cu_seqlens, selected, spec)
    if isinstance(impl, str):
        impl = resolve(spec, heads, q.dtype, q.device.type, impl)
    # Types are chosen inside: scores and selection are float32 whatever the layers around use.
    with torch.autocast(q.device.type, enabled=False):
        if not len(q):
            return q * gates[..., :1], q.new_empty(0, k.shape[1], spec.top_n, dtype=torch.int32)
        inputs = Inputs(q, k, v, block_keys, gates, cu_seqlens)
        return impl.attend(inputs, spec, selected)


def resolve(
    spec: BlossomSpec, heads: Heads, dtype: torch.dtype, device: str, impl: str = "auto"
) -> Backend:
    """The implementation for a layer, decided here and nowhere else.

    Args:
        spec: the definition of the operation.
        heads: H, G, d.
        dtype: of queries, keys and values.
        device: "cpu" or "cuda".
        impl: see :func:`blossom_attention`.

    Raises:
        ValueError: ``impl`` is unknown, or does not take these sizes, types or this device.

    Example:
        >>> resolve(BlossomSpec(), Heads(8, 2, 16), torch.float64, "cpu").name
        'torch'
    """
    if impl != "auto" and impl not in MODULES:
        raise ValueError(f"impl is {impl!r}: choose one of auto, {', '.join(MODULES)}")
    if torch.compiler.is_compiling():
        sizes = (heads.queries, heads.keys, heads.size)
        return _loaded[_choose_traced(impl, dtype, device, *sizes, *astuple(spec))]
    return _loaded[_choose(Target(spec, heads, dtype, device), impl)]


# While a graph is traced the answer is looked up, not traced itself. Objects made in the graph are
# not there yet: it takes and gives plain values.
@looked_up
def _choose_traced(
    impl: str, dtype: torch.dtype, device: str, queries: int, keys: int, size: int, *spec: Any
) -> str:
    return _choose(Target(BlossomSpec(*spec), Heads(queries, keys, size), dtype, device), impl)


def refusal(spec: BlossomSpec, heads: Heads, dtype: torch.dtype, device: str, impl: str) -> str:
    """Why an implementation does not take such a layer, as a sentence; empty where it does."""
    return _refusal(Target(spec, heads, dtype, device), impl)


@lru_cache(maxsize=256)
def _choose(target: Target, impl: str) -> str:
    """The key in ``_loaded`` of the implementation that ``impl`` stands for."""
    names = FASTEST.get(target.device, ("torch",)) if impl == "auto" else (impl,)
    for name in names:
        refused = _refusal(target, name)
        if not refused:
            parts = _parts(target, impl, name)
            key = f"{name} {parts}"
            if key not in _loaded:
                made = getattr(import_module(PARTS[parts]), parts)()
                _loaded[key] = Backend(name, _module(name).attend, made)
            return key
    raise ValueError(f"impl is {impl!r}: {refused}; impl='torch' takes all")


def _refusal(target: Target, impl: str) -> str:
    if impl == "triton" and not has_triton():
        return "Triton is not installed"
    return _module(impl).unsupported(target)


def _module(name: str):
    # Imported when asked for: the kernels need packages that not every machine has.
    return import_module(MODULES[name])


def _parts(target: Target, impl: str, name: str) -> str:
    """What stands around the operation: kernels on a GPU unless they were told to stay away."""
    if name == "cpu":
        return "CpuParts"
    may_fuse = target.device == "cuda" and impl not in ("reference", "torch")
    if name == "triton" or (may_fuse and has_triton() and target.dtype.itemsize <= 4):
        return "GpuParts"
    return "Parts"


@cache
def has_triton() -> bool:
    """Whether kernels written in Triton can be launched or interpreted here."""
    return find_spec("triton") is not None


def _check(q, k, v, block_keys, gates, cu_seqlens, selected, spec) -> Heads:
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
        "gates": (gates, (total, heads, spec.gate_size)),
    }
    if selected is not None:
        expected["selected"] = (selected, (total, groups, spec.top_n))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}: {list(shape)} is needed")
    return Heads(heads, groups, size)
